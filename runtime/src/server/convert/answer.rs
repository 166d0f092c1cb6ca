//! What a client is told, from our types.

use std::{mem, sync::PoisonError};

use berth_proto::v1;
use berth_shim::spec::{IdMapping, Propagation};
use bytes::Bytes;
use prost::Message;

use super::signal::cri_signal;
use crate::{
    cgroup::Resources,
    container::{self, Container, MountSource},
    image,
    sandbox::{self, NamespaceMode, Sandbox},
    server::MAX_MESSAGE,
};

fn mapping_out(ids: IdMapping) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: ids.host, container_id: 0, length: ids.length }]
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

/// Cut to what a client accepts: each stream may have 16 MiB, and so may the message that carries both.
pub(in crate::server) fn exec_output(output: container::Output) -> v1::ExecSyncResponse {
    // The rest of the message: tags, lengths and the exit code.
    const ROOM: usize = MAX_MESSAGE - 64;
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

pub(super) fn sandbox_metadata(config: &sandbox::Config) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        attempt: config.attempt,
    }
}

pub(in crate::server) fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    match sandbox.state() {
        sandbox::State::Ready => v1::PodSandboxState::SandboxReady,
        sandbox::State::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

pub(in crate::server) fn sandbox_item(sandbox: &Sandbox) -> v1::PodSandbox {
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

pub(in crate::server) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
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

pub(in crate::server) fn container_state(state: &container::State) -> v1::ContainerState {
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

pub(super) fn container_metadata(config: &container::Config) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }
}

pub(in crate::server) fn container_item(container: &Container) -> v1::Container {
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

/// As bytes of the wire, which the container keeps until its state is another.
pub(in crate::server) fn encoded_item(container: &Container) -> Bytes {
    let shown = mem::discriminant(&container.state());
    let mut listed = container.listed.lock().unwrap_or_else(PoisonError::into_inner);
    match &*listed {
        Some((state, bytes)) if *state == shown => bytes.clone(),
        _ => {
            let bytes = Bytes::from(container_item(container).encode_to_vec());
            *listed = Some((shown, bytes.clone()));
            bytes
        }
    }
}

pub(in crate::server) fn container_status(
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

pub(in crate::server) fn image(
    image: &image::Image,
    (repo_tags, repo_digests): (Vec<String>, Vec<String>),
    pinned: bool,
) -> v1::Image {
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
        pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_fits_a_message() {
        for (out, err) in [(16 << 20, 5), (5, 16 << 20), (16 << 20, 16 << 20), (8 << 20, 8 << 20)] {
            let message = exec_output(container::Output { stdout: vec![0; out], stderr: vec![0; err], exit_code: -1 });
            assert!(message.encoded_len() <= MAX_MESSAGE, "{out} {err}");
            assert!(message.stderr.len() >= err.min(5) && message.stdout.len() >= out.min(5));
        }
    }
}
