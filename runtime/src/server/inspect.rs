//! `info.runtimeSpec` of `crictl inspect` and `inspectp`: what people and scripts read of an OCI runtime specification where containerd
//! and CRI-O show theirs. Made for them from what the shim was told.

use std::path::{Path, PathBuf};

use berth_shim::spec::{self, Mount, MountKind, Namespace, Program, Propagation, Spec};
use serde_json::{Value, json};

use crate::{
    container::Container,
    layout::Layout,
    sandbox::{NamespaceMode, Pins, Sandbox},
};

/// `None` if the spec on disk cannot be read.
pub(super) fn of_container(container: &Container, layout: &Layout) -> Option<Value> {
    let spec: Spec = serde_json::from_value(container.spec(layout)).ok()?;
    let Program::Container(told) = spec.program else { return None };
    let spec::Process { args, env, cwd, no_new_privileges, oom_score_adj, apparmor, selinux, tty, .. } = told.process;
    let namespaces = spec.namespaces;
    let shared =
        [("network", &namespaces.net), ("ipc", &namespaces.ipc), ("uts", &namespaces.uts), ("pid", &namespaces.pid)];
    let mut all: Vec<Value> = shared.into_iter().filter_map(|(kind, namespace)| one(kind, namespace)).collect();
    all.extend(namespaces.user.and_then(|user| one("user", &Namespace::Join(user.path))));
    all.extend(["mount", "cgroup"].map(|kind| json!({ "type": kind })));
    Some(json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": args, "env": env, "cwd": cwd, "terminal": tty, "noNewPrivileges": no_new_privileges,
            "oomScoreAdj": oom_score_adj, "apparmorProfile": apparmor, "selinuxLabel": selinux,
        },
        "root": { "readonly": told.rootfs.readonly },
        "mounts": told.mounts.iter().map(mount).collect::<Vec<_>>(),
        "annotations": container.meta.config.annotations,
        "linux": {
            "namespaces": all, "cgroupsPath": format!("/{}", container.meta.cgroup),
            "maskedPaths": told.masked_paths, "readonlyPaths": told.readonly_paths,
        },
    }))
}

/// The namespaces that containers of the pod find.
pub(super) fn of_sandbox(sandbox: &Sandbox, layout: &Layout) -> Value {
    let meta = &sandbox.meta;
    let (pins, modes) = (Pins::of(layout, &meta.id), &meta.config.namespaces);
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
        "linux": { "namespaces": all.collect::<Vec<_>>(), "cgroupsPath": meta.config.cgroup_parent },
    })
}

/// As OCI has it: the host's is left out.
fn one(kind: &str, namespace: &Namespace) -> Option<Value> {
    match namespace {
        Namespace::Host => None,
        Namespace::New => Some(json!({ "type": kind })),
        Namespace::Join(path) => Some(json!({ "type": kind, "path": path })),
    }
}

fn mount(mount: &Mount) -> Value {
    let (kind, source): (&str, &Path) = match &mount.kind {
        MountKind::Proc => ("proc", Path::new("proc")),
        MountKind::Sysfs => ("sysfs", Path::new("sysfs")),
        MountKind::Cgroup { .. } => ("cgroup", Path::new("cgroup")),
        MountKind::Mqueue => ("mqueue", Path::new("mqueue")),
        MountKind::Dev | MountKind::Tmpfs { .. } => ("tmpfs", Path::new("tmpfs")),
        MountKind::Bind { source, .. } => ("bind", source),
        MountKind::Image { .. } => ("overlay", Path::new("image")),
        MountKind::Volume { name } => ("bind", Path::new(name)),
    };
    let mut options = vec![if mount.readonly { "ro" } else { "rw" }];
    if let MountKind::Bind { propagation, .. } = &mount.kind {
        let propagation = match propagation {
            Propagation::Private => "rprivate",
            Propagation::Slave => "rslave",
            Propagation::Shared => "rshared",
        };
        options.extend(["rbind", propagation]);
    }
    let flags = [(mount.nosuid, "nosuid"), (mount.nodev, "nodev"), (mount.noexec, "noexec")];
    options.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name));
    json!({ "destination": mount.target, "type": kind, "source": source, "options": options })
}
