//! `Spec` as `config.json` of the OCI runtime specification. Pure.

use std::path::Path;

use berth_shim::spec::{
    Container, Device, DeviceKind, Hook, Hooks, Mount, MountKind, Namespace, OciRuntime, Process, Propagation, Rlimit,
    RlimitKind, Spec,
};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use crate::{hooks::OCI_VERSION, passwd::Login};

/// What is not in the specification.
pub(super) struct Given<'a> {
    pub login: &'a Login,
    /// In force for this process, which may not be allowed what was asked for.
    pub limits: Vec<Rlimit>,
    pub oom_score_adj: i32,
    /// `linux.seccomp`, as the daemon has it.
    pub seccomp: Option<Value>,
    pub rootfs: &'a Path,
    /// Where the sources of mounts are, by their index.
    pub sources: &'a Path,
}

pub(super) fn config(spec: &Spec, container: &Container, runtime: &OciRuntime, given: &Given<'_>) -> Value {
    let mounts = container.mounts.iter().enumerate();
    let mounts: Vec<Value> = mounts.flat_map(|(index, request)| mount(request, given, index)).collect();
    json!({
        "ociVersion": OCI_VERSION,
        "root": { "path": given.rootfs, "readonly": container.rootfs.readonly },
        "process": process(&container.process, given),
        "mounts": mounts,
        "hooks": hooks(&container.hooks),
        "linux": {
            "namespaces": namespaces(spec),
            "cgroupsPath": runtime.cgroup,
            "devices": container.devices.iter().map(device).collect::<Vec<_>>(),
            "resources": { "devices": runtime.devices },
            "seccomp": given.seccomp,
            "maskedPaths": container.masked_paths,
            "readonlyPaths": container.readonly_paths,
            "rootfsPropagation": "rslave",
            "mountLabel": container.label.as_deref().unwrap_or_default(),
        },
    })
}

fn process(process: &Process, given: &Given<'_>) -> Value {
    let mut env = process.env.clone();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", given.login.home));
    }
    let names = |set: u64| {
        let set = CapabilitySet::from_bits_retain(set);
        set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect::<Vec<_>>()
    };
    let (granted, ambient) = (names(process.capabilities.granted), names(process.capabilities.ambient));
    let limits = given.limits.iter().map(|limit| {
        let kind = match limit.kind {
            RlimitKind::Core => "RLIMIT_CORE",
            RlimitKind::Nofile => "RLIMIT_NOFILE",
            RlimitKind::Nproc => "RLIMIT_NPROC",
        };
        json!({ "type": kind, "soft": limit.soft, "hard": limit.hard })
    });
    let user = &given.login.user;
    let mut json = json!({
        "terminal": process.tty,
        "args": process.args,
        "env": env,
        "cwd": process.cwd,
        "user": { "uid": user.uid, "gid": user.gid, "umask": 0o022, "additionalGids": user.groups },
        "capabilities": {
            "bounding": granted, "permitted": granted, "effective": granted, "inheritable": ambient, "ambient": ambient,
        },
        "noNewPrivileges": process.no_new_privileges,
        "rlimits": limits.collect::<Vec<_>>(),
        "oomScoreAdj": given.oom_score_adj,
    });
    if let Some(profile) = &process.apparmor {
        json["apparmorProfile"] = profile.as_str().into();
    }
    if let Some(label) = &process.selinux {
        json["selinuxLabel"] = label.as_str().into();
    }
    json
}

fn namespaces(spec: &Spec) -> Vec<Value> {
    let shared = [
        ("network", &spec.namespaces.net),
        ("ipc", &spec.namespaces.ipc),
        ("uts", &spec.namespaces.uts),
        ("pid", &spec.namespaces.pid),
    ];
    let shared = shared.into_iter().filter_map(|(kind, namespace)| match namespace {
        Namespace::Host => None,
        Namespace::New => Some(json!({ "type": kind })),
        Namespace::Join(path) => Some(json!({ "type": kind, "path": path })),
    });
    shared.chain(["mount", "cgroup"].map(|kind| json!({ "type": kind }))).collect()
}

/// One entry, or two for /dev, whose terminals are a filesystem of their own.
fn mount(request: &Mount, given: &Given<'_>, index: usize) -> Vec<Value> {
    let mut options: Vec<String> =
        [(request.readonly, "ro"), (request.nosuid, "nosuid"), (request.nodev, "nodev"), (request.noexec, "noexec")]
            .into_iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, option)| option.to_owned())
            .collect();
    let mut entry = |kind: &str, more: &[String]| {
        options.extend_from_slice(more);
        vec![json!({ "destination": request.target, "type": kind, "source": kind, "options": options })]
    };
    match &request.kind {
        MountKind::Proc => entry("proc", &[]),
        MountKind::Sysfs => entry("sysfs", &[]),
        MountKind::Mqueue => entry("mqueue", &[]),
        MountKind::Cgroup { .. } => entry("cgroup", &[]),
        MountKind::Tmpfs { size, mode } => {
            let size = (*size > 0).then(|| format!("size={size}"));
            entry("tmpfs", &[vec![format!("mode={mode:o}")], size.into_iter().collect()].concat())
        }
        MountKind::Dev => {
            let mut mounts = entry("tmpfs", &["strictatime", "mode=755", "size=65536"].map(str::to_owned));
            let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
            let at = request.target.join("pts");
            mounts.push(json!({ "destination": at, "type": "devpts", "source": "devpts", "options": terminals }));
            mounts
        }
        MountKind::Bind { .. } | MountKind::Image { .. } | MountKind::Volume { .. } => {
            let propagation = match &request.kind {
                MountKind::Bind { propagation: Propagation::Shared, .. } => "rshared",
                MountKind::Bind { propagation: Propagation::Slave, .. } => "rslave",
                _ => "rprivate",
            };
            let mut mounts = entry("bind", &["rbind".to_owned(), propagation.to_owned()]);
            mounts[0]["source"] = json!(given.sources.join(index.to_string()));
            mounts
        }
    }
}

fn device(device: &Device) -> Value {
    let kind = match device.kind {
        DeviceKind::Char => "c",
        DeviceKind::Block => "b",
    };
    json!({
        "path": device.path, "type": kind, "major": device.major, "minor": device.minor,
        "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
    })
}

fn hooks(hooks: &Hooks) -> Value {
    let list = |hooks: &[Hook]| {
        let hook = |hook: &Hook| {
            let mut json = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
            if let Some(seconds) = hook.timeout {
                json["timeout"] = seconds.into();
            }
            json
        };
        hooks.iter().map(hook).collect::<Vec<_>>()
    };
    json!({
        "prestart": list(&hooks.prestart),
        "createRuntime": list(&hooks.create_runtime),
        "createContainer": list(&hooks.create_container),
        "startContainer": list(&hooks.start_container),
        "poststart": list(&hooks.poststart),
        "poststop": list(&hooks.poststop),
    })
}
