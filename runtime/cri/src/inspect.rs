//! `info.runtimeSpec` of `crictl inspect` and `inspectp`. containerd and CRI-O show the OCI runtime
//! specification there, and people and scripts read it. berth has none, so its parts that they read
//! are made from what the shim was told.

use std::path::PathBuf;

use berth_base::layout::Layout;
use berth_node::{
    container::Container,
    sandbox::{NamespaceMode, Pins, Sandbox},
};
use berth_shim::{
    layout as shim_layout,
    spec::{self, Mount, MountKind, Namespace, Program, Propagation, Spec},
};
use serde_json::{Value, json};

/// The specification of a container. `None` if the shim's record on disk cannot be read.
pub(super) fn of_container(container: &Container, layout: &Layout) -> Option<Value> {
    let spec: Spec = serde_json::from_value(container.spec()).ok()?;
    let Program::Container(told) = spec.program else { return None };
    let spec::Process {
        args,
        env,
        cwd,
        no_new_privileges,
        oom_score_adj,
        apparmor,
        selinux,
        tty,
        ..
    } = told.process;
    let volumes = layout.container(&container.meta.id).join(shim_layout::VOLUMES);
    let places = Places { layers: told.rootfs.layers_dir, volumes };
    let namespaces = spec.namespaces;
    let shared = [
        ("network", &namespaces.net),
        ("ipc", &namespaces.ipc),
        ("uts", &namespaces.uts),
        ("pid", &namespaces.pid),
    ];
    let mut all: Vec<Value> =
        shared.into_iter().filter_map(|(kind, namespace)| one(kind, namespace)).collect();
    all.extend(namespaces.user.and_then(|user| one("user", &Namespace::Join(user.path))));
    // Every container has these two of its own.
    all.extend(["mount", "cgroup"].map(|kind| json!({ "type": kind })));
    Some(json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": args, "env": env, "cwd": cwd, "terminal": tty,
            "noNewPrivileges": no_new_privileges, "oomScoreAdj": oom_score_adj,
            "apparmorProfile": apparmor, "selinuxLabel": selinux,
        },
        "root": { "readonly": told.rootfs.readonly },
        "mounts": told.mounts.iter().map(|mount| places.mount(mount)).collect::<Vec<_>>(),
        "annotations": container.meta.config.annotations,
        "linux": {
            "namespaces": all, "cgroupsPath": format!("/{}", container.meta.cgroup),
            "maskedPaths": told.masked_paths, "readonlyPaths": told.readonly_paths,
        },
    }))
}

/// The specification of a sandbox, which runs no program: the namespaces that its containers share.
pub(super) fn of_sandbox(sandbox: &Sandbox, layout: &Layout) -> Value {
    let meta = &sandbox.meta;
    let pins = Pins::of(layout, &meta.id);
    let modes = &meta.config.namespaces;
    let own = |is_own: bool, path: PathBuf| is_own.then_some(path);
    let shared = [
        ("network", meta.netns()),
        ("ipc", own(modes.ipc != NamespaceMode::Node, pins.ipc)),
        ("uts", own(!meta.config.shares_uts(), pins.uts)),
        ("pid", own(modes.pid == NamespaceMode::Pod, pins.pid)),
        ("user", own(modes.user.is_some(), pins.user)),
    ];
    let all = shared.into_iter().filter_map(|(kind, path)| one(kind, &Namespace::Join(path?)));
    json!({
        "ociVersion": "1.2.0",
        "hostname": meta.config.hostname,
        "annotations": meta.config.annotations,
        "linux": {
            "namespaces": all.collect::<Vec<_>>(),
            "cgroupsPath": meta.config.cgroup_parent,
        },
    })
}

/// A namespace in OCI's form, in which one of the host is left out.
fn one(kind: &str, namespace: &Namespace) -> Option<Value> {
    match namespace {
        Namespace::Host => None,
        Namespace::New => Some(json!({ "type": kind })),
        Namespace::Join(path) => Some(json!({ "type": kind, "path": path })),
    }
}

/// Where on the host the sources of a container's mounts are.
struct Places {
    layers: PathBuf,
    volumes: PathBuf,
}

impl Places {
    fn mount(&self, mount: &Mount) -> Value {
        let own = |kind: &'static str| (kind, PathBuf::from(kind));
        let mut options = vec![if mount.readonly { "ro" } else { "rw" }.to_owned()];
        let (kind, source) = match &mount.kind {
            MountKind::Proc => own("proc"),
            MountKind::Sysfs => own("sysfs"),
            MountKind::Cgroup { .. } => own("cgroup"),
            MountKind::Mqueue => own("mqueue"),
            MountKind::Dev | MountKind::Tmpfs { .. } => own("tmpfs"),
            MountKind::HostSysfs => ("bind", PathBuf::from("/sys")),
            MountKind::Bind { source, .. } => ("bind", source.clone()),
            MountKind::Volume { name } => ("bind", self.volumes.join(name)),
            MountKind::Image { layers, sub_path } => match layers.as_slice() {
                [only] => ("bind", self.layers.join(only).join(sub_path)),
                // Several layers are one overlay, in which the sub path is a directory.
                several => {
                    options.push(self.lowerdir(several));
                    own("overlay")
                }
            },
        };
        options.extend(words(mount).map(str::to_owned));
        json!({ "destination": mount.target, "type": kind, "source": source, "options": options })
    }

    /// The option `lowerdir` of an overlay, topmost layer first.
    fn lowerdir(&self, layers: &[String]) -> String {
        let paths: Vec<String> =
            layers.iter().map(|layer| self.layers.join(layer).display().to_string()).collect();
        format!("lowerdir={}", paths.join(":"))
    }
}

/// The options of a mount, in the words of mount(8).
fn words(mount: &Mount) -> impl Iterator<Item = &'static str> {
    let propagation = match &mount.kind {
        MountKind::Bind { propagation: Propagation::Slave, .. } => "rslave",
        MountKind::Bind { propagation: Propagation::Shared, .. } => "rshared",
        _ => "rprivate",
    };
    let bind = matches!(mount.kind, MountKind::Bind { .. });
    let flags = [
        (bind, "rbind"),
        (bind, propagation),
        (mount.nosuid, "nosuid"),
        (mount.nodev, "nodev"),
        (mount.noexec, "noexec"),
    ];
    flags.into_iter().filter(|(set, _)| *set).map(|(_, word)| word)
}
