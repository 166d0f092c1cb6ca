//! CRI's responses, made from berth's types.

use berth_image as image;
use berth_node::{
    cgroup::Resources,
    container::{self, Container, MountSource},
    sandbox::{self, NamespaceMode, Sandbox},
};
use berth_proto::v1;
use berth_shim::spec::{IdMapping, Propagation};

use super::signal::cri_signal;
use crate::MAX_MESSAGE;

fn mapping_out(ids: IdMapping) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: ids.host, container_id: 0, length: ids.length }]
}

fn resources_out(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        hugepage_limits: resources.hugepage_limits.iter().map(hugepage_limit).collect(),
        unified: resources.unified.iter().cloned().collect(),
    }
}

fn hugepage_limit((page_size, limit): &(String, u64)) -> v1::HugepageLimit {
    v1::HugepageLimit { page_size: page_size.clone(), limit: *limit }
}

/// The output of an ExecSync, cut to the size that a client accepts. Each stream may have 16 MiB,
/// and so may the whole message; where both are long, each gets half.
pub(crate) fn exec_output(output: container::Output) -> v1::ExecSyncResponse {
    // 64 bytes are for the rest of the message: tags, lengths and the exit code.
    const ROOM: usize = MAX_MESSAGE - 64;
    let container::Output { mut stdout, mut stderr, exit_code } = output;
    // stdout may use what stderr does not need, and the other way round.
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

pub(super) fn sandbox_metadata(config: &sandbox::Config) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        attempt: config.attempt,
    }
}

pub(crate) fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    match sandbox.state() {
        sandbox::State::Ready => v1::PodSandboxState::SandboxReady,
        sandbox::State::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

/// An item of ListPodSandbox.
pub(crate) fn sandbox_item(sandbox: &Sandbox) -> v1::PodSandbox {
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

pub(crate) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
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
    // CRI has the primary address apart from the others.
    let mut addresses = sandbox.addresses().into_iter().map(|address| address.to_string());
    let ip = addresses.next().unwrap_or_default();
    let additional_ips = addresses.map(|ip| v1::PodIp { ip }).collect();
    v1::PodSandboxStatus {
        id: sandbox.meta.id.to_string(),
        metadata: Some(sandbox_metadata(config)),
        state: sandbox_state(sandbox).into(),
        created_at: sandbox.meta.created_at,
        network: Some(v1::PodSandboxNetworkStatus { ip, additional_ips }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(options) }),
        }),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: config.runtime_handler.clone(),
    }
}

pub(crate) fn container_state(state: &container::State) -> v1::ContainerState {
    match state {
        container::State::Unknown { .. } => v1::ContainerState::ContainerUnknown,
        container::State::Created => v1::ContainerState::ContainerCreated,
        container::State::Running { .. } => v1::ContainerState::ContainerRunning,
        container::State::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

fn image_spec(image: &str, config: &container::Config) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        user_specified_image: config.user_specified_image.clone(),
        ..v1::ImageSpec::default()
    }
}

pub(super) fn container_metadata(config: &container::Config) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }
}

/// An item of ListContainers. `EncodedItems` relies on its changing only with the state.
pub(crate) fn container_item(container: &Container) -> v1::Container {
    let meta = &container.meta;
    v1::Container {
        id: meta.id.to_string(),
        pod_sandbox_id: meta.sandbox.to_string(),
        metadata: Some(container_metadata(&meta.config)),
        // As it was asked for, because clients find the image by it.
        image: Some(image_spec(&meta.config.image, &meta.config)),
        image_ref: meta.image_ref.clone(),
        state: container_state(&container.state()).into(),
        created_at: meta.created_at,
        labels: meta.config.labels.clone().into_iter().collect(),
        annotations: meta.config.annotations.clone().into_iter().collect(),
        image_id: meta.image_id.clone(),
    }
}

pub(crate) fn container_status(container: &Container) -> v1::ContainerStatus {
    let meta = &container.meta;
    let state = container.state();
    let mut status = v1::ContainerStatus {
        id: meta.id.to_string(),
        metadata: Some(container_metadata(&meta.config)),
        state: container_state(&state).into(),
        created_at: meta.created_at,
        // Its name, which `kubectl describe` shows to people.
        image: Some(image_spec(meta.image_name(), &meta.config)),
        image_ref: meta.image_ref.clone(),
        image_id: meta.image_id.clone(),
        labels: meta.config.labels.clone().into_iter().collect(),
        annotations: meta.config.annotations.clone().into_iter().collect(),
        mounts: meta.config.mounts.iter().map(mount_out).collect(),
        log_path: meta.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources_out(&container.resources())),
            windows: None,
        }),
        started_at: state.started().map_or(0, |started| started.at),
        user: state.started().map(|started| user_out(&started.user)),
        stop_signal: cri_signal(meta.stop_signal).into(),
        ..v1::ContainerStatus::default()
    };
    match state {
        // The kubelet kills a container in this state before it starts another one.
        container::State::Unknown { why } => {
            status.reason = "Unknown".to_owned();
            status.message = why;
        }
        container::State::Created | container::State::Running { .. } => {}
        container::State::Exited { exited, .. } => {
            let (reason, message) = container::reason(&exited);
            status.finished_at = exited.at;
            status.exit_code = exited.end.code();
            status.reason = reason.to_owned();
            status.message = message;
        }
    }
    status
}

/// A mount of the request, as it was asked for.
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
            out.image = Some(v1::ImageSpec {
                image: image.clone(),
                image_ref: image_ref.clone(),
                ..v1::ImageSpec::default()
            });
            out.image_sub_path = sub_path.display().to_string();
        }
    }
    if let Some(mapping) = mount.mapping {
        out.uid_mappings = mapping_out(mapping.uids);
        out.gid_mappings = mapping_out(mapping.gids);
    }
    out
}

/// The user and groups that the first process was started with (KEP 3619).
fn user_out(user: &berth_shim::record::ResolvedUser) -> v1::ContainerUser {
    let supplemental_groups = user.groups.iter().map(|group| i64::from(*group)).collect();
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups,
        }),
    }
}

pub(crate) fn image(image: &image::Image, names: image::Names, pinned: bool) -> v1::Image {
    let user =
        image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    // The kubelet checks `runAsNonRoot` with it, and needs no group.
    let user = user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok();
    v1::Image {
        id: image.id.to_string(),
        repo_tags: names.tags,
        repo_digests: names.digests,
        size: image.size,
        // Either a uid or a name: the kubelet refuses `runAsNonRoot` for a name, which may be
        // root's.
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        uid: uid.map(|value| v1::Int64Value { value }),
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..v1::ImageSpec::default() }),
        pinned,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn output_fits_a_message() {
        for (out, err) in [(16 << 20, 5), (5, 16 << 20), (16 << 20, 16 << 20), (8 << 20, 8 << 20)] {
            let message = exec_output(container::Output {
                stdout: vec![0; out],
                stderr: vec![0; err],
                exit_code: -1,
            });
            assert!(message.encoded_len() <= MAX_MESSAGE, "{out} {err}");
            assert!(message.stderr.len() >= err.min(5) && message.stdout.len() >= out.min(5));
        }
    }
}
