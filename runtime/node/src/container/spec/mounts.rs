//! What is mounted in a container, in the order of mounting: the kernel's filesystems, the pod's
//! files, the image's volumes, and the mounts of the request. Pure functions.

use std::path::{Path, PathBuf};

use berth_base::{
    error::{Error, Result},
    layout,
};
use berth_shim::spec::{Mount, MountKind, Propagation};
use oci_spec::image::ImageConfiguration;

use super::inputs::Inputs;
use crate::{
    cdi,
    container::config::{self, MountSource},
    sandbox::NamespaceMode,
};

/// All mounts of a container, parents before what is below them.
///
/// # Errors
/// `InvalidArgument` for mounts that contradict themselves or each other.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Vec<Mount>> {
    let mut asked: Vec<Mount> =
        inputs.config.mounts.iter().map(|mount| request(inputs, mount)).collect::<Result<_>>()?;
    for tmpfs in &inputs.config.tmpfs {
        asked.push(of_memory(tmpfs)?);
    }
    for (index, mount) in asked.iter().enumerate() {
        if asked[..index].iter().any(|earlier| earlier.target == mount.target) {
            // The later one would silently hide the earlier one.
            return Err(Error::invalid(format!(
                "mounts: two of them have the container_path {}",
                mount.target.display()
            )));
        }
    }
    for mount in &inputs.named.mounts {
        // Two devices of one vendor may bring the same library, so this is no contradiction.
        let mount = of_device(mount)?;
        asked.retain(|earlier| earlier.target != mount.target);
        asked.push(mount);
    }
    let mut mounts = own(inputs);
    if !inputs.config.has_volumes {
        mounts.extend(volumes(inputs)?);
    }
    // A mount of the request replaces berth's own at the same path, as the kubelet does with its
    // /etc/hosts and its /dev/shm.
    mounts.retain(|own| asked.iter().all(|mount| mount.target != own.target));
    mounts.extend(asked);
    // A parent that was mounted later would hide what is below it. The sort is stable: mounts of
    // the same depth stay in the order of the request.
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

fn plain(target: impl Into<PathBuf>, kind: MountKind) -> Mount {
    Mount {
        target: target.into(),
        kind,
        readonly: false,
        nosuid: false,
        nodev: false,
        noexec: false,
    }
}

/// What every container has without asking for it.
fn own(inputs: &Inputs<'_>) -> Vec<Mount> {
    let Inputs { config, sandbox, .. } = inputs;
    // /sys and the cgroups are read-only except to privileged containers: most of /sys is the
    // host's.
    let hidden = !config.security.privileged;
    let cgroup = MountKind::Cgroup { v1: inputs.v1_names.clone(), own: inputs.own_v1.clone() };
    let shm = sandbox.ipc_pins(inputs.layout).map_or_else(|| "/dev/shm".into(), |pins| pins.shm);
    let sys = match (sandbox.config.namespaces.user, sandbox.config.namespaces.network) {
        // The kernel lets a user namespace mount sysfs only if it owns the network namespace. So
        // the host's is shown instead, read-only even to a privileged container, whose root is not
        // the host's.
        (Some(_), NamespaceMode::Node) => kernel("/sys", MountKind::HostSysfs, true),
        _ => kernel("/sys", MountKind::Sysfs, hidden),
    };
    let mut mounts = vec![
        kernel("/proc", MountKind::Proc, false),
        // Its devices must work, which nodev would prevent, and be mappable with PROT_EXEC, which
        // noexec would prevent (mmap(2)).
        Mount { nodev: false, noexec: false, ..kernel("/dev", MountKind::Dev, false) },
        kernel("/dev/mqueue", MountKind::Mqueue, false),
        sys,
        kernel("/sys/fs/cgroup", cgroup, hidden && !config.security.writable_cgroups),
    ];
    if !sandbox.config.without_shm {
        mounts.push(kernel("/dev/shm", bind(shm, false), false));
    }
    let directory = inputs.layout.sandbox(&sandbox.id);
    let files = [
        ("/etc/hosts", layout::sandbox::HOSTS),
        ("/etc/resolv.conf", layout::sandbox::RESOLV_CONF),
        ("/etc/hostname", layout::sandbox::HOSTNAME),
    ];
    // Mapped, so that root of a user namespace owns them, as root does without one.
    let mapped = sandbox.config.namespaces.user.is_some();
    mounts.extend(files.map(|(target, file)| Mount {
        readonly: config.security.readonly_rootfs,
        ..plain(target, bind(directory.join(file), mapped))
    }));
    mounts
}

/// A file system of the kernel. Nobody needs programs or devices in one.
fn kernel(target: &str, kind: MountKind, readonly: bool) -> Mount {
    Mount { readonly, nosuid: true, nodev: true, noexec: true, ..plain(target, kind) }
}

fn bind(source: PathBuf, idmap: bool) -> MountKind {
    MountKind::Bind {
        source,
        propagation: Propagation::Private,
        recursive_readonly: false,
        create: false,
        idmap,
        relabel: false,
        non_recursive: false,
    }
}

/// The volumes that the image declares. Each is a directory of the container's own, which is
/// removed with the container.
fn volumes(inputs: &Inputs<'_>) -> Result<Vec<Mount>> {
    let volume = |(index, target): (usize, PathBuf)| {
        plain(target, MountKind::Volume { name: index.to_string() })
    };
    Ok(declared_volumes(inputs.image)?.into_iter().enumerate().map(volume).collect())
}

/// Where an image declares volumes. The directory of each has its index here for a name.
///
/// # Errors
/// `InvalidArgument` for places that an image may not have.
pub fn declared_volumes(image: &ImageConfiguration) -> Result<Vec<PathBuf>> {
    let declared =
        image.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let mut targets =
        declared.iter().map(|target| normal(Path::new(target))).collect::<Result<Vec<_>>>()?;
    if let Some(target) = targets.iter().find(|target| is_of_kernel(target)) {
        return Err(Error::invalid(format!(
            "the image declares a volume at {}, which is the kernel's and cannot be replaced",
            target.display()
        )));
    }
    targets.sort_unstable();
    targets.dedup();
    Ok(targets)
}

/// Paths that an image may not replace by files of its own. With a /proc of its own it could keep
/// the runtime from setting the process' AppArmor and SELinux labels there (CVE-2019-19921).
fn is_of_kernel(target: &Path) -> bool {
    ["/proc", "/sys"].iter().any(|own| target.starts_with(own)) || target == Path::new("/dev")
}

/// The path as an absolute one, without `.`. The shim resolves it below the container's root, and
/// takes care of `..` and of symbolic links there.
fn normal(path: &Path) -> Result<PathBuf> {
    let path: PathBuf = Path::new("/").join(path).components().collect();
    if path == Path::new("/") || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Error::invalid(format!(
            "mounts: {:?} cannot be mounted on: it is the root, or has a NUL byte in it",
            path.display().to_string()
        )));
    }
    Ok(path)
}

/// A mount of the request.
fn request(inputs: &Inputs<'_>, mount: &config::Mount) -> Result<Mount> {
    let target = normal(&mount.container_path)?;
    if mount.recursive_readonly && (!mount.readonly || mount.propagation != Propagation::Private) {
        // The reason that the kubelet knows (KEP 3857).
        return Err(Error::invalid(format!(
            "RROUnsupported: the recursive read-only mount of {} must also be readonly, with \
             private propagation",
            target.display()
        )));
    }
    if inputs.oci_runtime.is_some()
        && (mount.recursive_readonly || mount.propagation == Propagation::Shared)
    {
        let what = "this pod's runtime handler supports neither bidirectional propagation nor \
                    recursive read-only mounts";
        return Err(Error::invalid(format!("mounts: {}: {what}", target.display())));
    }
    if mount.mapping.is_some() && mount.mapping != inputs.sandbox.config.namespaces.user {
        return Err(Error::invalid(format!(
            "mounts: the uid_mappings and gid_mappings of {} differ from those of the pod",
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
            non_recursive: mount.non_recursive,
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

/// The options of tmpfs(5) that are passed on.
const TMPFS_OPTIONS: [&str; 6] = ["size", "nr_blocks", "nr_inodes", "uid", "gid", "mpol"];

/// A file system in memory that the request asks for.
fn of_memory(tmpfs: &config::Tmpfs) -> Result<Mount> {
    let target = normal(&tmpfs.container_path)?;
    let mut readonly = false;
    let (mut mode, mut options) = (0, Vec::new());
    let mut built = plain(target, MountKind::Mqueue);
    for option in tmpfs.options.iter().filter(|option| !option.is_empty()) {
        let wrong = || Error::invalid(format!("Invalid tmpfs option {option:?}"));
        match (option.split_once('='), option.as_str()) {
            (_, "ro" | "rw") => readonly = option == "ro",
            (_, known) if OPTIONS.contains(&known) => apply(known, &mut built),
            (Some(("mode", value)), _) => {
                mode = u32::from_str_radix(value, 8).map_err(|_| wrong())?;
            }
            (Some((name, value)), _) if TMPFS_OPTIONS.contains(&name) => {
                options.retain(|(earlier, _)| earlier != name);
                options.push((name.to_owned(), value.to_owned()));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(Mount { kind: MountKind::Tmpfs { size: 0, mode, options }, readonly, ..built })
}

/// A bind mount that a CDI device brings along.
fn of_device(mount: &cdi::Mount) -> Result<Mount> {
    let target = normal(&mount.container_path)?;
    let wrong =
        |what: String| Error::invalid(format!("CDI: mount of {}: {what}", target.display()));
    if !matches!(mount.kind.as_str(), "" | "bind" | "none") {
        return Err(wrong(format!("type {:?} is not bind", mount.kind)));
    }
    if !mount.host_path.is_absolute() {
        return Err(wrong(format!(
            "hostPath {:?} is not absolute",
            mount.host_path.display().to_string()
        )));
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

/// Options of mount(8) that apply to a single mount, and not to a whole file system.
pub const OPTIONS: [&str; 6] = ["noexec", "exec", "nosuid", "suid", "nodev", "dev"];

/// Applies one of `OPTIONS`. The caller has refused any other.
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
        assert!(matches!(
            built.kind,
            MountKind::Bind { propagation: Propagation::Slave, create: false, .. }
        ));
        let tmpfs = |options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            of_memory(&config::Tmpfs { container_path: "/run".into(), options })
        };
        let made = tmpfs(&["noexec", "size=1m", "mode=770", "size=64k", "ro"]).unwrap();
        let options = vec![("size".to_owned(), "64k".to_owned())];
        assert_eq!(made.kind, MountKind::Tmpfs { size: 0, mode: 0o770, options });
        assert!(made.noexec && made.readonly && !made.nosuid);
        assert!(tmpfs(&["context=x"]).is_err() && tmpfs(&["mode=9"]).is_err());
        assert!(of_device(&bind(&["ro", "sync"])).unwrap_err().message.contains("sync"));
        assert!(of_device(&cdi::Mount { kind: "tmpfs".into(), ..bind(&[]) }).is_err());
        assert!(of_device(&cdi::Mount { host_path: "lib".into(), ..bind(&[]) }).is_err());
        assert!(
            OPTIONS
                .iter()
                .all(|option| ["exec", "suid", "dev"].contains(&option.trim_start_matches("no")))
        );
    }
}
