//! Requests about sandboxes in berth's types. What a request may not say is refused here, with
//! `InvalidArgument` and the name of the field.

use berth_base::error::{Error, Result};
use berth_cni::{PortMapping, Protocol};
use berth_node::sandbox::{self, Dns, NamespaceMode};
use berth_proto::v1;

use super::{
    resources::resources,
    security::{namespaces, selinux},
};

/// The request of RunPodSandbox.
pub(crate) fn sandbox_config(
    config: Option<v1::PodSandboxConfig>,
    runtime_handler: String,
) -> Result<sandbox::Config> {
    let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    // They become CNI_ARGS, `NAME=value;NAME=value`, in which a semicolon would begin another
    // argument.
    let joins = |text: &String| text.contains(|c: char| c == ';' || c.is_control());
    if [&metadata.name, &metadata.namespace, &metadata.uid].into_iter().any(joins) {
        return Err(Error::invalid(
            "config.metadata: name, namespace and uid may have no semicolons and no control \
             characters",
        ));
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::invalid("security_context.run_as_group needs run_as_user"));
    }
    let namespaces = namespaces(security.namespace_options.as_ref())?;
    if config.hostname.is_empty()
        && namespaces.network != NamespaceMode::Node
        && metadata.name.is_empty()
    {
        return Err(Error::invalid("config.metadata.name is missing"));
    }
    // The kernel's limit (HOST_NAME_MAX).
    if config.hostname.len() > 64 {
        return Err(Error::invalid("config.hostname is longer than 64 bytes"));
    }
    Ok(sandbox::Config {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        hostname: config.hostname,
        log_directory: config.log_directory.into(),
        dns: config.dns_config.map(|dns| Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        ports: config
            .port_mappings
            .into_iter()
            // The kubelet lists all ports of the pod; those without a host port need no mapping.
            .filter(|port| port.host_port > 0)
            .map(port)
            .collect::<Result<_>>()?,
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
        // What else there is has no field in CRI.
        ..sandbox::Config::default()
    })
}

pub(crate) fn ports(numbers: &[i32]) -> Result<Vec<u16>> {
    numbers.iter().copied().map(port_number).collect()
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

fn port_number(number: i32) -> Result<u16> {
    u16::try_from(number).map_err(|_| Error::invalid(format!("port {number} is out of range")))
}
