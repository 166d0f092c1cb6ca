//! The spec as `config.json` of the OCI runtime specification. Pure: nothing is read or written
//! here.

use std::path::Path;

use berth_shim::{
    record::ResolvedUser,
    spec::{
        Container, Device, DeviceKind, Hook, Hooks, Mount, MountKind, Namespace, OciRuntime,
        Process, Propagation, Spec, Ulimit, Window,
    },
};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use crate::{
    hooks::OCI_VERSION,
    passwd::{Login, with_home},
};

/// What `config.json` needs besides the spec.
pub(super) struct Resolved<'a> {
    pub login: &'a Login,
    /// The limits in force, which can be lower than those that were asked for.
    pub limits: Vec<Ulimit>,
    pub oom_score_adj: i32,
    /// `linux.seccomp`, as the daemon has written it.
    pub seccomp: Option<Value>,
    pub rootfs: &'a Path,
    /// The directory where the sources of mounts are, each by its index in the spec.
    pub sources: &'a Path,
}

/// The whole of `config.json`.
pub(super) fn config(
    spec: &Spec,
    container: &Container,
    runtime: &OciRuntime,
    resolved: &Resolved<'_>,
) -> Value {
    let mounts = container.mounts.iter().enumerate();
    let mounts: Vec<Value> =
        mounts.flat_map(|(index, request)| mount(request, resolved, index)).collect();
    json!({
        "ociVersion": OCI_VERSION,
        "root": { "path": resolved.rootfs, "readonly": container.rootfs.readonly },
        "process": process(spec.stdio.window, &container.process, resolved),
        "mounts": mounts,
        "hooks": hooks(&container.hooks),
        "linux": {
            "namespaces": namespaces(spec),
            "cgroupsPath": runtime.cgroup,
            "devices": container.devices.iter().map(device).collect::<Vec<_>>(),
            "resources": { "devices": runtime.devices },
            "seccomp": resolved.seccomp,
            "maskedPaths": container.masked_paths,
            "readonlyPaths": container.readonly_paths,
            "rootfsPropagation": "rslave",
            "mountLabel": container.label.as_deref().unwrap_or_default(),
        },
    })
}

fn process(window: Option<Window>, process: &Process, resolved: &Resolved<'_>) -> Value {
    let granted = capability_names(process.capabilities.granted);
    let ambient = capability_names(process.capabilities.ambient);
    let mut json = json!({
        "terminal": process.tty,
        "args": process.args,
        "env": with_home(&process.env, &resolved.login.home),
        "cwd": process.cwd,
        "user": user(&resolved.login.user),
        "capabilities": {
            "bounding": granted, "permitted": granted, "effective": granted,
            "inheritable": ambient, "ambient": ambient,
        },
        "noNewPrivileges": process.no_new_privileges,
        "rlimits": resolved.limits.iter().map(limit).collect::<Vec<_>>(),
        "oomScoreAdj": resolved.oom_score_adj,
    });
    if let Some(Window { rows, columns }) = window.filter(|_| process.tty) {
        json["consoleSize"] = json!({ "height": rows, "width": columns });
    }
    if let Some(profile) = &process.apparmor {
        json["apparmorProfile"] = profile.as_str().into();
    }
    if let Some(label) = &process.selinux {
        json["selinuxLabel"] = label.as_str().into();
    }
    json
}

fn capability_names(set: u64) -> Vec<String> {
    let set = CapabilitySet::from_bits_retain(set);
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

fn limit(limit: &Ulimit) -> Value {
    let kind = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
    json!({ "type": kind, "soft": limit.soft, "hard": limit.hard })
}

/// `process.user`. The umask is that of every other runtime.
pub(super) fn user(user: &ResolvedUser) -> Value {
    json!({
        "uid": user.uid, "gid": user.gid, "umask": 0o022, "additionalGids": user.groups,
    })
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
    let cgroup = (!spec.namespaces.host_cgroup).then_some("cgroup");
    shared.chain(["mount"].into_iter().chain(cgroup).map(|kind| json!({ "type": kind }))).collect()
}

/// One entry, or two for /dev: its terminals are a file system of their own.
fn mount(request: &Mount, resolved: &Resolved<'_>, index: usize) -> Vec<Value> {
    let mut options: Vec<String> = [
        (request.readonly, "ro"),
        (request.nosuid, "nosuid"),
        (request.nodev, "nodev"),
        (request.noexec, "noexec"),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .map(|(_, option)| option.to_owned())
    .collect();
    let mut entry = |kind: &str, more: &[String]| {
        options.extend_from_slice(more);
        vec![json!({
            "destination": request.target, "type": kind, "source": kind, "options": options,
        })]
    };
    match &request.kind {
        MountKind::Proc => entry("proc", &[]),
        // The host's sysfs is for user namespaces, which pods of other runtimes cannot have.
        MountKind::Sysfs | MountKind::HostSysfs => entry("sysfs", &[]),
        MountKind::Mqueue => entry("mqueue", &[]),
        MountKind::Cgroup { .. } => entry("cgroup", &[]),
        MountKind::Tmpfs { size, mode, options } => {
            let size = (*size > 0).then(|| format!("size={size}"));
            let more = options.iter().map(|(name, value)| format!("{name}={value}"));
            // Without one, the other runtime takes that of the directory which is covered.
            let mode = (*mode > 0).then(|| format!("mode={mode:o}"));
            let all: Vec<String> = mode.into_iter().chain(size).chain(more).collect();
            entry("tmpfs", &all)
        }
        MountKind::Dev => {
            let mut mounts =
                entry("tmpfs", &["strictatime", "mode=755", "size=65536"].map(str::to_owned));
            let terminals =
                ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
            let at = request.target.join("pts");
            mounts.push(json!({
                "destination": at, "type": "devpts", "source": "devpts", "options": terminals,
            }));
            mounts
        }
        MountKind::Bind { .. } | MountKind::Image { .. } | MountKind::Volume { .. } => {
            let propagation = match &request.kind {
                MountKind::Bind { propagation: Propagation::Shared, .. } => "rshared",
                MountKind::Bind { propagation: Propagation::Slave, .. } => "rslave",
                _ => "rprivate",
            };
            let mut mounts = entry("bind", &["rbind".to_owned(), propagation.to_owned()]);
            mounts[0]["source"] = json!(resolved.sources.join(index.to_string()));
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
    json!({
        "prestart": hook_list(&hooks.prestart),
        "createRuntime": hook_list(&hooks.create_runtime),
        "createContainer": hook_list(&hooks.create_container),
        "startContainer": hook_list(&hooks.start_container),
        "poststart": hook_list(&hooks.poststart),
        "poststop": hook_list(&hooks.poststop),
    })
}

fn hook_list(hooks: &[Hook]) -> Vec<Value> {
    hooks.iter().map(hook).collect()
}

fn hook(hook: &Hook) -> Value {
    let mut json = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
    if let Some(seconds) = hook.timeout {
        json["timeout"] = seconds.into();
    }
    json
}
