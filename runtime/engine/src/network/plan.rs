//! The network of a run: what its record asks for, and what other containers and the machine have
//! at that moment.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_base::id::SandboxId;
use berth_node::{
    network::Bridge,
    sandbox::{self, NamespaceMode},
};
use http::StatusCode;

use super::{
    Driver, endpoints, files,
    links::{self, Linked},
    names, ports,
    registry::Hold,
};
use crate::{
    api::host_config::HostConfig,
    container::{object::Container, record::Record},
    engine::Engine,
    http::error::{Failure, Result},
    ports::{Mapping, Port, PortBindings, Published},
};

/// What the sandbox of a run is attached to.
#[derive(Debug)]
enum Attached {
    Nothing,
    Bridges(Vec<Bridge>),
    /// The namespace of another sandbox.
    Joined(SandboxId),
}

/// What a run's sandbox and container are to have.
#[derive(Debug)]
pub(crate) struct Plan {
    namespace: NamespaceMode,
    attached: Attached,
    ports: Vec<Published>,
    hosts: String,
    /// Lines of /etc/hosts for other containers.
    names: Vec<String>,
    resolv_conf: Option<String>,
    hostname: Option<String>,
    /// Variables of the containers that it is linked to.
    pub env: Vec<(String, String)>,
    /// Nobody removes the networks before the run has begun.
    _hold: Option<Hold>,
}

/// dockerd's words before what keeps a network from being set up.
fn failed(what: &str) -> Failure {
    Failure::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("failed to set up container networking: {what}"),
    )
}

/// Decides what a run gets, and takes its ports of the host.
///
/// # Errors
/// There is no such network or container, or a port is not to be had.
pub(crate) fn plan(engine: &Engine, container: &Container) -> Result<Plan> {
    let mut record = container.record();
    if record.lists_networks && record.networking.endpoints_config.is_empty() {
        container.change_record(endpoints::come_back)?;
        record = container.record();
    }
    let host = &record.host_config;
    let mode = match record.config.network_disabled {
        true => "none",
        false => &host.network_mode,
    };
    let not_set_up =
        |failure: Failure| Failure { message: failed(&failure.message).message, ..failure };
    let Some(network) = engine.networks.of_mode(mode).map_err(not_set_up)? else {
        return joined(engine, &record);
    };
    let has_host_network = network.driver == Driver::Host;
    // On networks of users it becomes another one when the name server has come.
    let servers = if has_host_network { files::Servers::OfHost } else { files::Servers::Reachable };
    let gateway = engine.networks.find("bridge")?.gateway();
    let mut plan = Plan {
        namespace: if has_host_network { NamespaceMode::Node } else { NamespaceMode::Pod },
        attached: Attached::Nothing,
        ports: Vec::new(),
        hosts: files::extra_hosts(host.extra_hosts.as_deref().unwrap_or_default(), gateway)?,
        names: Vec::new(),
        resolv_conf: Some(files::resolv_conf(&files::of_host(), host, servers)),
        hostname: None,
        env: Vec::new(),
        _hold: None,
    };
    if network.driver == Driver::Bridge {
        for link in host.links.iter().flatten() {
            plan.link(engine, &record, link)?;
        }
        let bridges = endpoints::bridges(engine, &record).map_err(not_set_up)?;
        let ids = bridges.iter().map(|bridge| bridge.network.clone());
        plan._hold = Some(engine.networks.hold(ids).map_err(not_set_up)?);
        plan.names = names::lines(engine, &bridges);
        let wanted = mappings(&record)?;
        wanted.iter().filter_map(|it| it.host_ip).try_for_each(|at| check_place(at, &bridges))?;
        let at = published_at(engine, &bridges);
        plan.attached = Attached::Bridges(bridges);
        let reserved = engine.ports.reserve(&container.id, &wanted, &at);
        plan.ports = reserved.map_err(|why| unconnected(&record.name, &why))?;
    }
    Ok(plan)
}

/// dockerd's error for ports that cannot be had.
fn unconnected(name: &str, why: &str) -> Failure {
    let endpoint = berth_base::id::random_hex(32);
    failed(&format!(
        "driver failed programming external connectivity on endpoint {name} ({endpoint}): {why}"
    ))
}

/// The network of another container, which must run.
fn joined(engine: &Engine, record: &Record) -> Result<Plan> {
    let (_, name) = record.host_config.network_mode.split_once(':').unwrap_or_default();
    let other = engine.containers.find(name).map_err(|failure| Failure {
        message: format!("joining network namespace of container: {}", failure.message),
        ..failure
    })?;
    if other.id == record.id {
        return Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot join own network namespace",
        ));
    }
    let state = other.state();
    if !state.is_running() {
        return Err(Failure::conflict(format!(
            "cannot join network namespace of a non running container: container {} is {}",
            other.record().name,
            state.status()
        )));
    }
    let its = other.record();
    let has_host_network = engine
        .networks
        .of_mode(&its.host_config.network_mode)?
        .is_some_and(|network| network.driver == Driver::Host);
    Ok(Plan {
        namespace: if has_host_network { NamespaceMode::Node } else { NamespaceMode::Pod },
        attached: Attached::Joined(SandboxId::from(other.id.clone())),
        ports: Vec::new(),
        hosts: String::new(),
        names: Vec::new(),
        resolv_conf: None,
        hostname: Some(its.config.hostname.clone()),
        env: Vec::new(),
        _hold: None,
    })
}

impl Plan {
    /// Adds what a link gives: a line of /etc/hosts, and variables.
    fn link(&mut self, engine: &Engine, record: &Record, link: &str) -> Result<()> {
        let (name, alias) = links::parse(link)?;
        let other = engine.containers.find(name)?;
        let its = other.record();
        let address = address(engine, &other).ok_or_else(|| {
            Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "Cannot link to a non running container: /{} AS /{}/{alias}",
                    its.name, record.name
                ),
            )
        })?;
        let exposed = exposed(&its);
        let env = its.config.env.as_deref().unwrap_or_default();
        let linked =
            Linked { alias, name: &its.name, id: &its.id, address, exposed: &exposed, env };
        self.hosts += &linked.hosts_line();
        self.env.extend(linked.env(&record.name));
        Ok(())
    }

    /// Writes it into the sandbox of the run.
    pub(crate) fn apply(&self, record: &Record, sandbox: &mut sandbox::Config) {
        sandbox.namespaces.network = self.namespace;
        match &self.attached {
            Attached::Nothing => sandbox.unattached = true,
            Attached::Bridges(bridges) => sandbox.bridges.clone_from(bridges),
            Attached::Joined(other) => sandbox.join_network = Some(other.clone()),
        }
        sandbox.ports = ports::mappings(&self.ports);
        sandbox.hosts.clone_from(&self.hosts);
        sandbox.extra_hosts.clone_from(&self.names);
        sandbox.resolv_conf.clone_from(&self.resolv_conf);
        sandbox.domainname.clone_from(&record.config.domainname);
        if let Some(hostname) = &self.hostname {
            sandbox.hostname.clone_from(hostname);
        }
        // With the host's UTS namespace this is refused: it would rename the host.
        if !record.config.domainname.is_empty() {
            let domain = record.config.domainname.clone();
            sandbox.sysctls.entry("kernel.domainname".to_owned()).or_insert(domain);
        }
    }
}

/// dockerd's error for an address that somebody else has.
pub(crate) fn address_in_use(message: &str) -> Option<Failure> {
    message
        .contains("is in use by container")
        .then(|| Failure::new(StatusCode::FORBIDDEN, "Address already in use"))
}

/// The error of a sandbox whose ports or address somebody else has after all: a pod, or a program that
/// came in between.
pub(crate) fn refused(engine: &Engine, container: &Container, message: &str) -> Option<Failure> {
    if let Some(failure) = address_in_use(message) {
        return Some(Failure { message: failed(&failure.message).message, ..failure });
    }
    let (_, rest) = message.split_once("port ")?;
    let (number, rest) = rest.split_once('/')?;
    let number: u16 = number.parse().ok()?;
    let why = match rest {
        rest if rest.contains("of the host is mapped to container") => "port is already allocated",
        rest if rest.contains("of the host is in use by a program") => "address already in use",
        _ => return None,
    };
    let ports = engine.ports.of(&container.id);
    let wanted = ports.iter().find(|one| one.host_port == number)?;
    Some(unconnected(&container.record().name, &ports::refusal(wanted, why)))
}

/// The address of a container that runs on a bridge.
pub(crate) fn address(engine: &Engine, container: &Container) -> Option<IpAddr> {
    let sandbox = engine.node.sandboxes.find(&container.id).ok()?;
    container.state().is_running().then(|| sandbox.addresses().first().copied()).flatten()
}

/// The exposed ports of a container, of the protocols that can be published.
pub(crate) fn exposed(record: &Record) -> BTreeSet<Port> {
    let keys = record.config.exposed_ports.iter().flat_map(|ports| ports.keys());
    keys.filter_map(|key| crate::ports::exposed([key.as_str()]).ok()).flatten().collect()
}

/// The ports of the host that a container wants. As with dockerd, a binding counts only if its port
/// is exposed: the CLI and the SDKs expose what they bind.
///
/// # Errors
/// 400 in dockerd's words for what is no port.
pub(crate) fn mappings(record: &Record) -> Result<Vec<Mapping>> {
    let host = &record.host_config;
    Ok(crate::ports::mappings(&bindings(host), &exposed(record), host.publish_all_ports)?)
}

/// Whether a port can be published at this address of the host.
///
/// # Errors
/// 501: the kernel translates no address into one of the other family, nor does it let a connection to
/// ::1 leave the host. dockerd has a process for each such port, which passes connections on.
fn check_place(at: IpAddr, bridges: &[Bridge]) -> Result<()> {
    let why = if at.is_ipv6() && at.is_loopback() {
        "connections to it do not leave the host"
    } else if !has_family(bridges, at.is_ipv4()) {
        "the container is on no network of that family"
    } else {
        return Ok(());
    };
    let message = format!("publishing a port at {at} is not possible: {why}");
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, message))
}

/// The addresses of the host at which a port is published that names none: the one that the network has
/// for it which leads outside, else all of the families that the container has.
fn published_at(engine: &Engine, bridges: &[Bridge]) -> Vec<IpAddr> {
    let leading = bridges.iter().find(|bridge| bridge.is_default);
    let leading = leading.and_then(|bridge| engine.networks.find(&bridge.network).ok());
    match leading.and_then(|network| network.host_binding()) {
        Some(address) => vec![address],
        None => [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]
            .into_iter()
            .filter(|any| has_family(bridges, any.is_ipv4()))
            .collect(),
    }
}

fn has_family(bridges: &[Bridge], is_v4: bool) -> bool {
    let mut subnets = bridges.iter().flat_map(|bridge| &bridge.subnets);
    subnets.any(|subnet| subnet.net.addr().is_ipv4() == is_v4)
}

fn bindings(host: &HostConfig) -> PortBindings {
    let binding = |binding: &crate::api::host_config::PortBinding| {
        Some(crate::ports::PortBinding {
            host_ip: binding.host_ip.clone(),
            host_port: binding.host_port.clone(),
        })
    };
    let ports = host.port_bindings.iter().flatten();
    ports
        .map(|(port, bindings)| {
            let bindings = bindings.as_ref().map(|bindings| bindings.iter().map(binding).collect());
            (port.clone(), bindings)
        })
        .collect()
}
