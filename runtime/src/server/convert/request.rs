//! What a client asks for, in our types. What a request may not say is refused here, with `InvalidArgument` and the field's name.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use berth_cni::{PortMapping, Protocol};
use berth_proto::v1;
use berth_shim::spec::{IdMapping, Propagation};

use super::signal::linux_signal;
use crate::{
    apparmor::Profile,
    cgroup::Resources,
    container::{self, MountSource, Seccomp, Security},
    error::{Error, Result},
    image,
    sandbox::{self, Dns, NamespaceMode, NamespaceModes, UserMapping},
    selinux,
    streaming::Wanted,
};

/// `procMount: Default` of Kubernetes, for clients that send no security context at all.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(in crate::server) fn sandbox_config(
    config: Option<v1::PodSandboxConfig>,
    runtime_handler: String,
) -> Result<sandbox::Config> {
    let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    // They go to CNI plugins as `NAME=value;NAME=value`.
    let joins = |text: &String| text.contains(|c: char| c == ';' || c.is_control());
    if [&metadata.name, &metadata.namespace, &metadata.uid].into_iter().any(joins) {
        return Err(Error::invalid("config.metadata: a semicolon or a control character"));
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::invalid("security_context.run_as_group needs run_as_user"));
    }
    let namespaces = namespaces(security.namespace_options.as_ref())?;
    if config.hostname.is_empty() && namespaces.network != NamespaceMode::Node && metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is missing"));
    }
    if config.hostname.len() > 64 {
        return Err(Error::invalid("config.hostname is longer than 64 characters"));
    }
    Ok(sandbox::Config {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        hostname: config.hostname,
        log_directory: config.log_directory.into(),
        dns: config.dns_config.map(|dns| Dns { servers: dns.servers, searches: dns.searches, options: dns.options }),
        ports: config.port_mappings.into_iter().filter(|port| port.host_port > 0).map(port).collect::<Result<_>>()?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: linux.cgroup_parent,
        overhead: linux.overhead.map(resources),
        resources: linux.resources.map(resources),
        sysctls: linux.sysctls.into_iter().collect(),
        namespaces,
        privileged: security.privileged,
        selinux: selinux(security.selinux_options),
        runtime_handler,
    })
}

/// Which of stdin, stdout and stderr a client is to have.
///
/// # Errors
/// None at all, or stderr beside a terminal, which has no such thing.
pub(crate) fn streams((stdin, stdout, stderr): (bool, bool, bool), tty: bool) -> Result<Wanted> {
    if tty && stderr {
        return Err(Error::invalid("tty and stderr exclude one another"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Error::invalid("one of stdin, stdout and stderr is wanted"));
    }
    Ok(Wanted { stdin, stdout, stderr, tty })
}

pub(crate) fn ports(numbers: &[i32]) -> Result<Vec<u16>> {
    numbers.iter().copied().map(port_number).collect()
}

fn port_number(number: i32) -> Result<u16> {
    u16::try_from(number).map_err(|_| Error::invalid(format!("port {number} is out of range")))
}

fn port(port: v1::PortMapping) -> Result<PortMapping> {
    let protocol = match port.protocol() {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Sctp => Protocol::Sctp,
    };
    Ok(PortMapping {
        host_port: port_number(port.host_port)?,
        container_port: port_number(port.container_port)?,
        protocol,
        host_ip: port.host_ip,
    })
}

fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<NamespaceModes> {
    let Some(options) = options else { return Ok(NamespaceModes::default()) };
    let mode = |mode: v1::NamespaceMode| match mode {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => NamespaceMode::Target,
    };
    for (field, given) in [("network", options.network()), ("ipc", options.ipc())] {
        if matches!(given, v1::NamespaceMode::Container | v1::NamespaceMode::Target) {
            return Err(Error::invalid(format!("namespace_options.{field}: only POD and NODE have a meaning")));
        }
    }
    Ok(NamespaceModes {
        network: mode(options.network()),
        pid: mode(options.pid()),
        ipc: mode(options.ipc()),
        target: options.target_id.clone(),
        user: options.userns_options.as_ref().map(user_namespace).transpose()?.flatten(),
    })
}

fn user_namespace(options: &v1::UserNamespace) -> Result<Option<UserMapping>> {
    match options.mode() {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => Err(Error::invalid("userns_options: mode NODE has no mappings")),
        v1::NamespaceMode::Pod => mapping(&options.uids, &options.gids).map(Some),
        mode => Err(Error::invalid(format!("userns_options: mode {} has no meaning", mode.as_str_name()))),
    }
}

/// One line for users and one for groups, both from 0 on, is what the kubelet sends and what is supported.
fn mapping(uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> Result<UserMapping> {
    let one = |what: &str, ids: &[v1::IdMapping]| match ids {
        [v1::IdMapping { container_id: 0, host_id, length }]
            if *length > 0 && host_id.checked_add(*length).is_some() =>
        {
            Ok(IdMapping { host: *host_id, length: *length })
        }
        _ => Err(Error::invalid(format!("{what}: exactly one mapping that begins at 0 inside is needed"))),
    };
    Ok(UserMapping { uids: one("uids", uids)?, gids: one("gids", gids)? })
}

pub(in crate::server) fn container_config(config: Option<v1::ContainerConfig>) -> Result<container::Config> {
    let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is missing"));
    }
    let image = config.image.ok_or_else(|| Error::invalid("config.image is missing"))?;
    let stop_signal =
        v1::Signal::try_from(config.stop_signal).map_err(|_| Error::invalid("stop_signal is not a signal"))?;
    let linux = config.linux.unwrap_or_default();
    let env = |pair: v1::KeyValue| {
        let wrong =
            || Error::invalid(format!("environment variable {:?} is empty, or has an = or a NUL byte in it", pair.key));
        let value = String::from_utf8(pair.value)
            .map_err(|_| Error::invalid(format!("environment variable {:?} is not UTF-8", pair.key)))?;
        let fits = !pair.key.is_empty() && !pair.key.contains(['=', '\0']) && !value.contains('\0');
        fits.then(|| (pair.key.clone(), value)).ok_or_else(wrong)
    };
    Ok(container::Config {
        name: metadata.name,
        attempt: metadata.attempt,
        image: image.image,
        user_specified_image: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        env: config.envs.into_iter().map(env).collect::<Result<_>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_>>()?,
        devices: config.devices.into_iter().map(device).collect(),
        cdi_devices: config.cdi_devices.into_iter().map(|device| device.name).collect(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: log_path(&config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: linux_signal(stop_signal),
        resources: linux.resources.map(resources).unwrap_or_default(),
        security: security(linux.security_context)?,
    })
}

fn device(device: v1::Device) -> container::Device {
    container::Device {
        host_path: device.host_path.into(),
        container_path: device.container_path.into(),
        permissions: device.permissions,
    }
}

/// It is joined to the pod's log directory, which it must not leave.
fn log_path(text: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text);
    let inside =
        path.components().all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if inside { Ok(path) } else { Err(Error::invalid(format!("log_path {text:?} is not below the log directory"))) }
}

fn mount(mount: v1::Mount) -> Result<container::Mount> {
    if mount.container_path.is_empty() {
        return Err(Error::invalid("mounts: container_path is missing"));
    }
    let mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    let mapping = mapped.then(|| mapping(&mount.uid_mappings, &mount.gid_mappings)).transpose()?;
    if let Some(option) = mount.mount_options.iter().find(|option| !container::MOUNT_OPTIONS.contains(&option.as_str()))
    {
        let known = container::MOUNT_OPTIONS.join(", ");
        return Err(Error::invalid(format!(
            "mounts: unknown option {option:?} for {}; there is {known}",
            mount.container_path
        )));
    }
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::Slave,
        v1::MountPropagation::PropagationBidirectional => Propagation::Shared,
    };
    Ok(container::Mount {
        source: mount_source(&mount)?,
        container_path: mount.container_path.into(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        mapping,
        options: mount.mount_options,
    })
}

fn mount_source(mount: &v1::Mount) -> Result<MountSource> {
    let image = mount.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let wrong = |what: &str| Err(Error::invalid(format!("mounts: {} {what}", mount.container_path)));
    match (image, mount.host_path.as_str()) {
        ("", "") => wrong("has neither a host_path nor an image"),
        ("", _) if !mount.image_sub_path.is_empty() => wrong("has an image_sub_path and no image"),
        ("", path) => Ok(MountSource::Host(path.into())),
        (_, "") if !mount.readonly => wrong("is of an image, and not read-only"),
        (_, "") if mount.image_sub_path.starts_with('/') => wrong("has an image_sub_path that is absolute"),
        (image, "") => Ok(MountSource::Image {
            image: image.to_owned(),
            sub_path: mount.image_sub_path.clone().into(),
            image_ref: String::new(),
        }),
        _ => wrong("has both a host_path and an image"),
    }
}

fn security(context: Option<v1::LinuxContainerSecurityContext>) -> Result<Security> {
    let paths = |paths: Vec<String>| paths.into_iter().map(PathBuf::from).collect::<Vec<_>>();
    let Some(context) = context else {
        let masked_paths = MASKED.map(PathBuf::from).to_vec();
        return Ok(Security {
            masked_paths,
            readonly_paths: READONLY.map(PathBuf::from).to_vec(),
            ..Security::default()
        });
    };
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let namespaces = namespaces(context.namespace_options.as_ref())?;
    let strict_groups = context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Strict;
    #[allow(deprecated, reason = "kubelets of old still send them")]
    let (seccomp_path, apparmor_name) = (&context.seccomp_profile_path, &context.apparmor_profile);
    let seccomp = seccomp(context.seccomp.as_ref(), seccomp_path)?;
    let apparmor = apparmor(context.apparmor.as_ref(), apparmor_name)?;
    Ok(Security {
        privileged: context.privileged,
        namespaces,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        ambient_capabilities: capabilities.add_ambient_capabilities,
        run_as_user: context.run_as_user.map(|user| user.value),
        run_as_username: context.run_as_username,
        run_as_group: context.run_as_group.map(|group| group.value),
        supplemental_groups: context.supplemental_groups,
        strict_groups,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: paths(context.masked_paths),
        readonly_paths: paths(context.readonly_paths),
        seccomp,
        apparmor,
        selinux: selinux(context.selinux_options),
    })
}

fn selinux(options: Option<v1::SeLinuxOption>) -> selinux::Options {
    let v1::SeLinuxOption { user, role, r#type, level } = options.unwrap_or_default();
    selinux::Options { user, role, kind: r#type, level }
}

/// As with seccomp, but that neither means the default.
fn apparmor(profile: Option<&v1::SecurityProfile>, name: &str) -> Result<Profile> {
    use v1::security_profile::ProfileType;
    let local = |name: &str| match name.strip_prefix("localhost/").unwrap_or(name) {
        "" => Err(Error::invalid("apparmor: localhost_ref is missing")),
        name => Ok(Profile::Localhost(name.to_owned())),
    };
    match (profile.map(|profile| (profile.profile_type(), profile.localhost_ref.as_str())), name) {
        (Some((ProfileType::RuntimeDefault, _)), _) | (None, "" | "runtime/default") => Ok(Profile::RuntimeDefault),
        (Some((ProfileType::Unconfined, _)), _) | (None, "unconfined") => Ok(Profile::Unconfined),
        (Some((ProfileType::Localhost, name)), _) => local(name),
        (None, name) if name.starts_with("localhost/") => local(name),
        (None, name) => Err(Error::invalid(format!("apparmor_profile {name:?} is not localhost/<name>"))),
    }
}

/// The deprecated path counts only when the message is absent; neither means unconfined.
fn seccomp(profile: Option<&v1::SecurityProfile>, path: &str) -> Result<Seccomp> {
    use v1::security_profile::ProfileType;
    match (profile.map(v1::SecurityProfile::profile_type), path) {
        (Some(ProfileType::Unconfined), _) | (None, "" | "unconfined") => Ok(Seccomp::Unconfined),
        (Some(ProfileType::RuntimeDefault), _) | (None, "runtime/default" | "docker/default") => {
            Ok(Seccomp::RuntimeDefault)
        }
        (Some(ProfileType::Localhost), _) => local(profile.map_or("", |profile| &profile.localhost_ref)),
        (None, path) => local(path.strip_prefix("localhost/").unwrap_or(path)),
    }
}

fn local(path: &str) -> Result<Seccomp> {
    match path.starts_with('/') {
        true => Ok(Seccomp::Localhost(path.into())),
        false => Err(Error::invalid(format!("seccomp.localhost_ref {path:?} is not an absolute path"))),
    }
}

pub(in crate::server) fn resources(resources: v1::LinuxContainerResources) -> Resources {
    Resources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        memory_limit: resources.memory_limit_in_bytes,
        memory_swap_limit: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        hugepage_limits: resources.hugepage_limits.into_iter().map(|limit| (limit.page_size, limit.limit)).collect(),
        unified: resources.unified.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect(),
    }
}

pub(in crate::server) fn auth(auth: Option<v1::AuthConfig>) -> image::Given {
    let auth = auth.unwrap_or_default();
    image::Given {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        registry_token: auth.registry_token,
        identity_token: auth.identity_token,
        server_address: auth.server_address,
    }
}

/// 0 is no limit; the kubelet never sends less.
pub(in crate::server) fn timeout(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_paths_stay_below_the_log_directory() {
        assert!(log_path("a/0.log").is_ok() && log_path("").is_ok());
        assert!(log_path("../0.log").is_err() && log_path("/etc/passwd").is_err() && log_path("a/../../b").is_err());
    }

    #[test]
    fn no_security_context_hides_what_kubernetes_hides_and_an_empty_one_hides_nothing() {
        assert_eq!(security(None).unwrap().masked_paths.len(), MASKED.len());
        let empty = security(Some(v1::LinuxContainerSecurityContext::default())).unwrap();
        assert!(empty.masked_paths.is_empty() && empty.seccomp == Seccomp::Unconfined);
    }
}
