//! CRI messages to our types and back. What a request may not say is refused here, with `InvalidArgument` and the field's name.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use berth_proto::v1;
use berth_shim::spec::{IdMapping, Propagation};

use crate::{
    apparmor::Profile,
    cgroup::Resources,
    container::{self, Container, MountSource, Seccomp, Security},
    error::{Error, Kind, Result},
    image,
    network::PortMapping,
    sandbox::{self, Dns, NamespaceMode, NamespaceModes, Sandbox, UserMapping},
};

/// The names under which kubelets and conformance tests ask for the one runtime that there is.
pub(super) const HANDLERS: [&str; 4] = ["", "berth", "runc", "test-handler"];
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

fn unsupported(field: &str) -> Error {
    Error::new(Kind::Internal, format!("{field} is not supported by this version of berth"))
}

pub(super) fn handler(name: &str) -> Result<()> {
    let known = || HANDLERS.iter().filter(|known| !known.is_empty()).copied().collect::<Vec<_>>().join(", ");
    if HANDLERS.contains(&name) {
        Ok(())
    } else {
        Err(Error::invalid(format!("no runtime handler {name:?}; there is {}", known())))
    }
}

pub(super) fn sandbox_config(config: Option<v1::PodSandboxConfig>, runtime_handler: String) -> Result<sandbox::Config> {
    handler(&runtime_handler)?;
    let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
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
        runtime_handler,
    })
}

fn port(port: v1::PortMapping) -> Result<PortMapping> {
    let protocol = match port.protocol() {
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
        v1::Protocol::Sctp => "sctp",
    };
    let number =
        |number: i32| u16::try_from(number).map_err(|_| Error::invalid(format!("port {number} is out of range")));
    Ok(PortMapping {
        host_port: number(port.host_port)?,
        container_port: number(port.container_port)?,
        protocol: protocol.to_owned(),
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

fn mapping_out(ids: IdMapping) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: ids.host, container_id: 0, length: ids.length }]
}

pub(super) fn container_config(config: Option<v1::ContainerConfig>) -> Result<container::Config> {
    let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is missing"));
    }
    let image = config.image.ok_or_else(|| Error::invalid("config.image is missing"))?;
    handler(&image.runtime_handler)?;
    if !config.cdi_devices.is_empty() {
        return Err(unsupported("CDI_devices"));
    }
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
    })
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

pub(super) fn resources(resources: v1::LinuxContainerResources) -> Resources {
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

fn resources_out(resources: &Resources) -> v1::LinuxContainerResources {
    let page = |(page_size, limit): &(String, u64)| v1::HugepageLimit { page_size: page_size.clone(), limit: *limit };
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        hugepage_limits: resources.hugepage_limits.iter().map(page).collect(),
        unified: resources.unified.iter().cloned().collect(),
    }
}

/// CRI numbers signals by the alphabet: `SIGNAL_SIGTERM` is 23 there and 15 here.
fn linux_signal(signal: v1::Signal) -> Option<i32> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_SIG")?;
    let (min, max) = (nix::libc::SIGRTMIN(), nix::libc::SIGRTMAX());
    let number = |text: &str| text.parse::<i32>().ok();
    match name {
        "RTMIN" => Some(min),
        "RTMAX" => Some(max),
        // Other names of the same signals.
        "CLD" => Some(nix::libc::SIGCHLD),
        "POLL" => Some(nix::libc::SIGIO),
        "IOT" => Some(nix::libc::SIGABRT),
        _ => name
            .strip_prefix("RTMINPLUS")
            .and_then(number)
            .map(|offset| min + offset)
            .or_else(|| name.strip_prefix("RTMAXMINUS").and_then(number).map(|offset| max - offset))
            .or_else(|| format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)),
    }
}

fn cri_signal(number: i32) -> v1::Signal {
    let all = (1..=65).filter_map(|value| v1::Signal::try_from(value).ok());
    all.into_iter().find(|signal| linux_signal(*signal) == Some(number)).unwrap_or(v1::Signal::RuntimeDefault)
}

pub(super) fn auth(auth: Option<v1::AuthConfig>) -> image::Given {
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
pub(super) fn timeout(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

pub(super) fn stats(container: &Container, stats: &container::Stats) -> v1::ContainerStats {
    let meta = &container.meta;
    let value = |value: u64| Some(v1::UInt64Value { value });
    let container::Stats { at, usage, nano_cores, layer } = stats;
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: meta.id.to_string(),
            metadata: Some(container_metadata(&meta.config)),
            labels: meta.config.labels.clone().into_iter().collect(),
            annotations: meta.config.annotations.clone().into_iter().collect(),
        }),
        cpu: Some(v1::CpuUsage {
            timestamp: *at,
            usage_core_nano_seconds: value(usage.cpu_nanos),
            usage_nano_cores: nano_cores.and_then(value),
            ..v1::CpuUsage::default()
        }),
        memory: Some(v1::MemoryUsage {
            timestamp: *at,
            working_set_bytes: value(usage.working_set),
            available_bytes: usage.memory_limit.and_then(|limit| value(limit.saturating_sub(usage.working_set))),
            usage_bytes: value(usage.memory),
            rss_bytes: value(usage.rss),
            page_faults: value(usage.page_faults),
            major_page_faults: value(usage.major_page_faults),
            ..v1::MemoryUsage::default()
        }),
        swap: usage.swap.map(|used| v1::SwapUsage {
            timestamp: *at,
            swap_usage_bytes: value(used),
            ..v1::SwapUsage::default()
        }),
        writable_layer: Some(v1::FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: layer.path.display().to_string() }),
            used_bytes: value(layer.bytes),
            inodes_used: value(layer.inodes),
        }),
        ..v1::ContainerStats::default()
    }
}

/// Cut to what a client accepts: each stream may have 16 MiB, and so may the message that carries both.
pub(super) fn exec_output(output: container::Output) -> v1::ExecSyncResponse {
    // The rest of the message: tags, lengths and the exit code.
    const ROOM: usize = super::MAX_MESSAGE - 64;
    let container::Output { mut stdout, mut stderr, exit_code } = output;
    stdout.truncate(ROOM - stderr.len().min(ROOM / 2));
    stderr.truncate(ROOM - stdout.len());
    v1::ExecSyncResponse { stdout, stderr, exit_code }
}

fn mode(mode: NamespaceMode) -> i32 {
    let mode = match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target => v1::NamespaceMode::Target,
    };
    mode.into()
}

fn sandbox_metadata(config: &sandbox::Config) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        attempt: config.attempt,
    }
}

fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    match sandbox.state() {
        sandbox::State::Ready => v1::PodSandboxState::SandboxReady,
        sandbox::State::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn sandbox_item(sandbox: &Sandbox) -> v1::PodSandbox {
    let config = &sandbox.meta.config;
    v1::PodSandbox {
        id: sandbox.meta.id.to_string(),
        metadata: Some(sandbox_metadata(config)),
        state: sandbox_state(sandbox).into(),
        created_at: sandbox.meta.created_at,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: config.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let config = &sandbox.meta.config;
    let options = v1::NamespaceOption {
        network: mode(config.namespaces.network),
        pid: mode(config.namespaces.pid),
        ipc: mode(config.namespaces.ipc),
        target_id: config.namespaces.target.clone(),
        userns_options: config.namespaces.user.map(|user| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: mapping_out(user.uids),
            gids: mapping_out(user.gids),
        }),
    };
    let mut addresses = sandbox.addresses().into_iter().map(|address| address.to_string());
    let ip = addresses.next().unwrap_or_default();
    let additional_ips = addresses.map(|ip| v1::PodIp { ip }).collect();
    v1::PodSandboxStatus {
        id: sandbox.meta.id.to_string(),
        metadata: Some(sandbox_metadata(config)),
        state: sandbox_state(sandbox).into(),
        created_at: sandbox.meta.created_at,
        network: Some(v1::PodSandboxNetworkStatus { ip, additional_ips }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: config.runtime_handler.clone(),
    }
}

fn container_state(state: &container::State) -> v1::ContainerState {
    match state {
        container::State::Created => v1::ContainerState::ContainerCreated,
        container::State::Running { .. } => v1::ContainerState::ContainerRunning,
        container::State::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

fn image_spec(config: &container::Config) -> v1::ImageSpec {
    v1::ImageSpec {
        image: config.image.clone(),
        user_specified_image: config.user_specified_image.clone(),
        ..v1::ImageSpec::default()
    }
}

fn container_metadata(config: &container::Config) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }
}

pub(super) fn container_item(container: &Container) -> v1::Container {
    let meta = &container.meta;
    v1::Container {
        id: meta.id.to_string(),
        pod_sandbox_id: meta.sandbox.to_string(),
        metadata: Some(container_metadata(&meta.config)),
        image: Some(image_spec(&meta.config)),
        image_ref: meta.image_ref.clone(),
        state: container_state(&container.state()).into(),
        created_at: meta.created_at,
        labels: meta.config.labels.clone().into_iter().collect(),
        annotations: meta.config.annotations.clone().into_iter().collect(),
        image_id: meta.image_id.clone(),
    }
}

pub(super) fn container_status(
    container: &Container,
    user: Option<berth_shim::record::ResolvedUser>,
) -> v1::ContainerStatus {
    let (meta, state) = (&container.meta, container.state());
    let mut status = v1::ContainerStatus {
        id: meta.id.to_string(),
        metadata: Some(container_metadata(&meta.config)),
        state: container_state(&state).into(),
        created_at: meta.created_at,
        image: Some(image_spec(&meta.config)),
        image_ref: meta.image_ref.clone(),
        image_id: meta.image_id.clone(),
        labels: meta.config.labels.clone().into_iter().collect(),
        annotations: meta.config.annotations.clone().into_iter().collect(),
        mounts: meta.config.mounts.iter().map(mount_out).collect(),
        log_path: meta.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(v1::ContainerResources { linux: Some(resources_out(&container.resources())), windows: None }),
        user: user.map(user_out),
        stop_signal: cri_signal(meta.stop_signal).into(),
        ..v1::ContainerStatus::default()
    };
    match state {
        container::State::Created => {}
        container::State::Running { started_at, .. } => status.started_at = started_at,
        container::State::Exited { started_at, exited } => {
            let (reason, message) = Container::reason(&exited);
            status.started_at = started_at;
            status.finished_at = exited.at;
            status.exit_code = exited.end.code();
            status.reason = reason.to_owned();
            status.message = message;
        }
    }
    status
}

fn mount_out(mount: &container::Mount) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::Slave => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Shared => v1::MountPropagation::PropagationBidirectional,
    };
    let mut out = v1::Mount {
        container_path: mount.container_path.display().to_string(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_readonly,
        mount_options: mount.options.clone(),
        ..v1::Mount::default()
    };
    match &mount.source {
        MountSource::Host(path) => out.host_path = path.display().to_string(),
        MountSource::Image { image, sub_path, image_ref } => {
            let (image, image_ref) = (image.clone(), image_ref.clone());
            out.image = Some(v1::ImageSpec { image, image_ref, ..v1::ImageSpec::default() });
            out.image_sub_path = sub_path.display().to_string();
        }
    }
    if let Some(mapping) = mount.mapping {
        (out.uid_mappings, out.gid_mappings) = (mapping_out(mapping.uids), mapping_out(mapping.gids));
    }
    out
}

fn user_out(user: berth_shim::record::ResolvedUser) -> v1::ContainerUser {
    let supplemental_groups = user.groups.iter().map(|group| i64::from(*group)).collect();
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser { uid: user.uid.into(), gid: user.gid.into(), supplemental_groups }),
    }
}

pub(super) fn image(image: &image::Image, (repo_tags, repo_digests): (Vec<String>, Vec<String>)) -> v1::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok();
    v1::Image {
        id: image.id.to_string(),
        repo_tags,
        repo_digests,
        size: image.size,
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        uid: uid.map(|value| v1::Int64Value { value }),
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..v1::ImageSpec::default() }),
        pinned: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_cri_are_those_of_linux() {
        for (signal, number) in [
            (v1::Signal::RuntimeDefault, None),
            (v1::Signal::Sigterm, Some(15)),
            (v1::Signal::Sigrtmin, Some(34)),
            (v1::Signal::Sigrtminplus15, Some(49)),
            (v1::Signal::Sigrtmaxminus14, Some(50)),
            (v1::Signal::Sigrtmax, Some(64)),
        ] {
            assert_eq!(linux_signal(signal), number, "{signal:?}");
        }
        // Every one of them means something, and comes back as a name of the same signal.
        for value in 1..=65 {
            let number = linux_signal(v1::Signal::try_from(value).unwrap()).unwrap();
            assert_eq!(linux_signal(cri_signal(number)), Some(number));
        }
    }

    #[test]
    fn output_fits_a_message() {
        use prost::Message as _;
        for (out, err) in [(16 << 20, 5), (5, 16 << 20), (16 << 20, 16 << 20), (8 << 20, 8 << 20)] {
            let message = exec_output(container::Output { stdout: vec![0; out], stderr: vec![0; err], exit_code: -1 });
            assert!(message.encoded_len() <= super::super::MAX_MESSAGE, "{out} {err}");
            assert!(message.stderr.len() >= err.min(5) && message.stdout.len() >= out.min(5));
        }
    }

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
