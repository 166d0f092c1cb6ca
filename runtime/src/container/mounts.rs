//! What is mounted in a container, in the order of mounting: the kernel's filesystems, the pod's files, the image's volumes, and what
//! the request names. Pure.

use std::path::{Path, PathBuf};

use berth_shim::spec::{Mount, MountKind, Propagation};

use super::{MountSource, spec::Inputs};
use crate::{
    cdi,
    error::{Error, Result},
    layout,
    sandbox::{NamespaceMode, Pins},
};

/// # Errors
/// `InvalidArgument` for mounts that contradict themselves or each other.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Vec<Mount>> {
    let mut asked: Vec<Mount> =
        inputs.config.mounts.iter().map(|mount| request(inputs, mount)).collect::<Result<_>>()?;
    for (index, mount) in asked.iter().enumerate() {
        if asked[..index].iter().any(|earlier| earlier.target == mount.target) {
            return Err(Error::invalid(format!("mounts: two of them at {}", mount.target.display())));
        }
    }
    for mount in &inputs.named.mounts {
        // Two devices may bring the same library.
        let mount = of_device(mount)?;
        asked.retain(|earlier| earlier.target != mount.target);
        asked.push(mount);
    }
    let mut mounts = own(inputs);
    mounts.extend(volumes(inputs)?);
    mounts.retain(|own| asked.iter().all(|mount| mount.target != own.target));
    mounts.extend(asked);
    // Parents before what is below them; the order of the request otherwise.
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

fn plain(target: impl Into<PathBuf>, kind: MountKind) -> Mount {
    Mount { target: target.into(), kind, readonly: false, nosuid: false, nodev: false, noexec: false }
}

fn own(inputs: &Inputs<'_>) -> Vec<Mount> {
    let Inputs { config, sandbox, .. } = inputs;
    let hidden = !config.security.privileged;
    let shm = match sandbox.config.namespaces.ipc {
        NamespaceMode::Node => PathBuf::from("/dev/shm"),
        _ => Pins::of(inputs.layout, &sandbox.id).shm,
    };
    let kernel = |target: &str, kind, readonly| Mount {
        readonly,
        nosuid: true,
        nodev: true,
        noexec: true,
        ..plain(target, kind)
    };
    let mut mounts = vec![
        kernel("/proc", MountKind::Proc, false),
        Mount { nodev: false, noexec: false, ..kernel("/dev", MountKind::Dev, false) },
        kernel("/dev/shm", bind(shm, false), false),
        kernel("/dev/mqueue", MountKind::Mqueue, false),
        kernel("/sys", MountKind::Sysfs, hidden),
        kernel("/sys/fs/cgroup", MountKind::Cgroup { v1: inputs.v1_names.clone() }, hidden),
    ];
    let directory = inputs.layout.sandbox(&sandbox.id);
    let files = [
        ("/etc/hosts", layout::sandbox::HOSTS),
        ("/etc/resolv.conf", layout::sandbox::RESOLV_CONF),
        ("/etc/hostname", layout::sandbox::HOSTNAME),
    ];
    // Root of a user namespace owns them, as root without one does.
    let mapped = sandbox.config.namespaces.user.is_some();
    mounts.extend(files.map(|(target, file)| Mount {
        readonly: config.security.readonly_rootfs,
        ..plain(target, bind(directory.join(file), mapped))
    }));
    mounts
}

fn bind(source: PathBuf, idmap: bool) -> MountKind {
    MountKind::Bind {
        source,
        propagation: Propagation::Private,
        recursive_readonly: false,
        create: false,
        idmap,
        relabel: false,
    }
}

/// A directory of the container's own for every volume that the image declares, and that goes with the container.
fn volumes(inputs: &Inputs<'_>) -> Result<Vec<Mount>> {
    let declared = inputs.image.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let mut targets = declared.iter().map(|target| normal(Path::new(target))).collect::<Result<Vec<_>>>()?;
    targets.sort_unstable();
    targets.dedup();
    let volume = |(index, target): (usize, PathBuf)| plain(target, MountKind::Volume { name: index.to_string() });
    Ok(targets.into_iter().enumerate().map(volume).collect())
}

/// Absolute and without `.`; `..` would not mean below the root what it says.
fn normal(path: &Path) -> Result<PathBuf> {
    let path: PathBuf = Path::new("/").join(path).components().collect();
    if path == Path::new("/") || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Error::invalid(format!("mounts: {:?} cannot be mounted on", path.display().to_string())));
    }
    Ok(path)
}

fn request(inputs: &Inputs<'_>, mount: &super::Mount) -> Result<Mount> {
    let target = normal(&mount.container_path)?;
    if mount.recursive_readonly && (!mount.readonly || mount.propagation != Propagation::Private) {
        return Err(Error::invalid(format!(
            "RROUnsupported: a recursive read-only mount of {} must be read-only with private propagation",
            target.display()
        )));
    }
    if inputs.oci_runtime.is_some() && (mount.recursive_readonly || mount.propagation == Propagation::Shared) {
        let what = "with this pod's runtime handler there is neither bidirectional propagation nor recursive read-only";
        return Err(Error::invalid(format!("mounts: {}: {what}", target.display())));
    }
    if mount.mapping.is_some() && mount.mapping != inputs.sandbox.config.namespaces.user {
        return Err(Error::invalid(format!(
            "mounts: the ids of {} are not mapped as those of the pod",
            target.display()
        )));
    }
    let kind = match &mount.source {
        MountSource::Host(source) => MountKind::Bind {
            source: source.clone(),
            propagation: mount.propagation,
            recursive_readonly: mount.recursive_readonly,
            create: true,
            idmap: mount.mapping.is_some(),
            relabel: mount.selinux_relabel,
        },
        MountSource::Image { image, sub_path, .. } => {
            let layers = inputs.mounted.get(image).cloned().unwrap_or_default();
            MountKind::Image { layers, sub_path: sub_path.clone() }
        }
    };
    let mut built = Mount { readonly: mount.readonly, ..plain(target, kind) };
    mount.options.iter().for_each(|option| apply(option, &mut built));
    Ok(built)
}

/// A bind that a CDI device brings.
fn of_device(mount: &cdi::Mount) -> Result<Mount> {
    let target = normal(&mount.container_path)?;
    let wrong = |what: String| Error::invalid(format!("CDI: mount of {}: {what}", target.display()));
    if !matches!(mount.kind.as_str(), "" | "bind" | "none") {
        return Err(wrong(format!("type {:?} is not bind", mount.kind)));
    }
    if !mount.host_path.is_absolute() {
        return Err(wrong(format!("hostPath {:?} is not absolute", mount.host_path.display().to_string())));
    }
    let mut propagation = Propagation::Private;
    let mut built = plain(target.clone(), bind(mount.host_path.clone(), false));
    for option in &mount.options {
        match option.as_str() {
            "bind" | "rbind" => {}
            "ro" | "rw" => built.readonly = option == "ro",
            "private" | "rprivate" => propagation = Propagation::Private,
            "slave" | "rslave" => propagation = Propagation::Slave,
            "shared" | "rshared" => propagation = Propagation::Shared,
            known if OPTIONS.contains(&known) => apply(known, &mut built),
            unknown => return Err(wrong(format!("unknown option {unknown:?}"))),
        }
    }
    if let MountKind::Bind { propagation: of_bind, .. } = &mut built.kind {
        *of_bind = propagation;
    }
    Ok(built)
}

/// Words of mount(8) that have a meaning for a single mount.
pub(crate) const OPTIONS: [&str; 6] = ["noexec", "exec", "nosuid", "suid", "nodev", "dev"];

fn apply(option: &str, mount: &mut Mount) {
    match option {
        "noexec" | "exec" => mount.noexec = option == "noexec",
        "nosuid" | "suid" => mount.nosuid = option == "nosuid",
        "nodev" | "dev" => mount.nodev = option == "nodev",
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_absolute_and_the_later_of_two_options_counts() {
        assert_eq!(normal(Path::new("data/./x")).unwrap(), Path::new("/data/x"));
        assert!(normal(Path::new("/")).is_err() && normal(Path::new("a\0b")).is_err());
        let mut mount = plain("/x", MountKind::Mqueue);
        ["noexec", "nodev", "exec", "nosuid"].iter().for_each(|option| apply(option, &mut mount));
        assert_eq!((mount.noexec, mount.nodev, mount.nosuid), (false, true, true));
        let bind = |options: &[&str]| cdi::Mount {
            host_path: "/lib/x".into(),
            container_path: "/x".into(),
            kind: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let built = of_device(&bind(&["ro", "nosuid", "rbind", "rslave"])).unwrap();
        assert!(built.readonly && built.nosuid && !built.nodev);
        assert!(matches!(built.kind, MountKind::Bind { propagation: Propagation::Slave, create: false, .. }));
        assert!(of_device(&bind(&["ro", "sync"])).unwrap_err().message.contains("sync"));
        assert!(of_device(&cdi::Mount { kind: "tmpfs".into(), ..bind(&[]) }).is_err());
        assert!(of_device(&cdi::Mount { host_path: "lib".into(), ..bind(&[]) }).is_err());
        assert!(OPTIONS.iter().all(|option| ["exec", "suid", "dev"].contains(&option.trim_start_matches("no"))));
    }
}
