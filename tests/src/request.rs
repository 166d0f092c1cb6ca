//! Requests that tests begin with and change: pods, containers, mounts.

use std::{collections::HashMap, path::Path};

use berth_proto::v1;

use crate::machine::Machine;

/// A pod of this name, with a cgroup parent and a log directory in the test's machine. Each
/// container has a PID namespace of its own.
pub fn pod(machine: &Machine, name: &str) -> v1::PodSandboxConfig {
    // The default of the API is a PID namespace for the whole pod; the kubelet's is one for each
    // container.
    let options =
        v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let security =
        v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "test".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: machine.path(&format!("logs/{name}")).display().to_string(),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", machine.cgroup_parent),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs a shell script, and whose log is `NAME.log`.
pub fn container(name: &str, image: &str, script: &str) -> v1::ContainerConfig {
    let options =
        v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let security = v1::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A directory or file of the host, mounted at `target`.
pub fn bind(host: &Path, target: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: target.to_owned(),
        ..Default::default()
    }
}

/// An image's files, or those below `sub_path` in it, mounted at `target`, read-only as they have
/// to be.
pub fn image_mount(image: &str, target: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: target.to_owned(),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

/// What [`pod`] and [`container`] have filled in deep inside, to be changed.
pub trait Config {
    /// The security context of a container or of a pod.
    type Security;

    fn security(&mut self) -> &mut Self::Security;

    /// Which namespaces are shared with whom.
    fn namespaces(&mut self) -> &mut v1::NamespaceOption;
}

impl Config for v1::ContainerConfig {
    type Security = v1::LinuxContainerSecurityContext;

    fn security(&mut self) -> &mut Self::Security {
        let linux = self.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut v1::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }
}

impl Config for v1::PodSandboxConfig {
    type Security = v1::LinuxSandboxSecurityContext;

    fn security(&mut self) -> &mut Self::Security {
        let linux = self.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut v1::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }
}
