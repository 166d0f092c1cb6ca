//! Containers that come to networks and leave them, at rest or while they run.

use std::sync::Arc;

use berth_base::observe::{self, steps::docker_network};
use http::StatusCode;

use super::{Driver, Network, create::join, endpoints, names, object::Wish};
use crate::{
    api::create::EndpointSettings,
    container::{object::Container, record::Record},
    engine::Engine,
    http::error::{Failure, Result},
};

fn forbidden(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, message)
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

/// Connects a container to a network, which is on record once this has returned.
///
/// # Errors
/// 403 if it is on it, or if one of the two has no bridge; 400 for an address that cannot be; what the
/// kernel says, and then nothing is left.
pub(crate) async fn connect(
    engine: &Arc<Engine>,
    network: &Arc<Network>,
    container: &Arc<Container>,
    settings: EndpointSettings,
) -> Result<()> {
    let _life = container.life.lock().await;
    let record = container.record();
    check(engine, network, &record)?;
    check_settings(network, &settings).map_err(|why| {
        Failure::bad_request(format!("invalid config for network {}: {why}", network.name))
    })?;
    let _hold = engine.networks.hold([network.id.clone()])?;
    observe::before(docker_network::CONNECT)?;
    let live = container.state().is_running();
    if live {
        let sandbox = engine.node.sandboxes.find(&container.id)?;
        let used = sandbox.bridges();
        let inside = (0..).map(|index| format!("eth{index}"));
        let inside = inside.into_iter().find(|name| !used.iter().any(|it| it.inside == *name));
        let wish = Wish {
            inside: inside.unwrap_or_default(),
            // That is decided below, among all of its networks.
            is_default: false,
            addresses: endpoints::addresses(&settings)?,
            mac: endpoints::mac(&settings),
        };
        let connected = sandbox.connect(&engine.node.host, network.bridge(wish)).await;
        connected.map_err(|error| {
            super::plan::address_in_use(&error.message).unwrap_or_else(|| error.into())
        })?;
    }
    let note = |record: &mut Record| {
        keep_mode(record);
        record.networking.endpoints_config.insert(network.name.clone(), Some(settings));
    };
    let noted = match observe::before(docker_network::CONNECTED) {
        Ok(()) => container.change_record(note),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = noted {
        if live {
            let sandbox = engine.node.sandboxes.find(&container.id)?;
            if let Err(undoing) = sandbox.disconnect(&engine.node.host, &network.id).await {
                tracing::warn!(container = container.id, "left of a connection: {undoing}");
            }
        }
        return Err(error.into());
    }
    if live {
        if let Err(error) = endpoints::lead(engine, container).await {
            if let Err(undoing) = leave(engine, network, container, &network.name).await {
                let message = &undoing.message;
                tracing::warn!(container = container.id, "left of a connection: {message}");
            }
            return Err(error);
        }
        engine.publish_endpoint(container, network, "connect");
        names::update(engine, container);
        names::serve(engine, container).await;
    }
    Ok(())
}

/// Takes a container from a network.
///
/// # Errors
/// 500 if it is not on it, as dockerd; 403 for one that has no bridge.
pub(crate) async fn disconnect(
    engine: &Engine,
    network: &Arc<Network>,
    container: &Arc<Container>,
) -> Result<()> {
    let _life = container.life.lock().await;
    let record = container.record();
    if network.driver == Driver::Host {
        return Err(forbidden(
            "cannot disconnect container from host network - container was created in host network \
             mode",
        ));
    }
    let key = key(engine, &record, network);
    let live = container.state().is_running();
    // The interface may be what is left of an attempt that failed.
    let has_interface = live
        && engine
            .node
            .sandboxes
            .find(&container.id)
            .is_ok_and(|sandbox| sandbox.bridges().iter().any(|it| it.network == network.id));
    if key.is_none() && !has_interface {
        return Err(failed(format!(
            "container {} is not connected to network {}",
            container.id, network.name
        )));
    }
    observe::before(docker_network::DISCONNECT)?;
    leave(engine, network, container, &key.unwrap_or_default()).await?;
    if live {
        engine.publish_endpoint(container, network, "disconnect");
        names::update(engine, container);
    }
    Ok(())
}

/// Takes a container from the network that its record has under this key.
async fn leave(engine: &Engine, network: &Network, container: &Container, key: &str) -> Result<()> {
    // The record first: what is left by a crash in between is taken away by the next start.
    container.change_record(|record| {
        keep_mode(record);
        record.networking.endpoints_config.remove(key);
    })?;
    observe::before(docker_network::DISCONNECTED)?;
    if container.state().is_running() {
        let sandbox = engine.node.sandboxes.find(&container.id)?;
        sandbox.disconnect(&engine.node.host, &network.id).await?;
        // It has left in any case.
        if let Err(error) = endpoints::lead(engine, container).await {
            tracing::warn!(container = container.id, "change its default route: {}", error.message);
        }
    }
    Ok(())
}

/// Writes down the network that a record names by its mode alone.
fn keep_mode(record: &mut Record) {
    for wanted in endpoints::wanted(record) {
        record.networking.endpoints_config.entry(wanted.name).or_insert(Some(wanted.settings));
    }
    record.lists_networks = true;
}

/// By what the record names this network.
fn key(engine: &Engine, record: &Record, network: &Network) -> Option<String> {
    let mut wanted = endpoints::wanted(record).into_iter();
    let is_it = |name: &str| engine.networks.find(name).is_ok_and(|it| it.id == network.id);
    wanted.find(|one| is_it(&one.name)).map(|one| one.name)
}

fn check(engine: &Engine, network: &Network, record: &Record) -> Result<()> {
    if record.host_config.network_mode.starts_with("container:") {
        return Err(forbidden(
            "container sharing network namespace with another container or host cannot be connected \
             to any other network",
        ));
    }
    let own = engine.networks.of_mode(&record.host_config.network_mode).ok().flatten();
    match (network.driver, own.map(|own| own.driver)) {
        (Driver::Host, _) => Err(Failure::bad_request(
            "cannot connect container to host network - container must be created in host network \
             mode",
        )),
        (_, Some(Driver::Host)) => Err(forbidden(
            "container sharing network namespace with another container or host cannot be connected \
             to any other network",
        )),
        (Driver::Null, _) | (_, Some(Driver::Null)) => Err(Failure::bad_request(
            "container cannot be connected to multiple networks with one of the networks in private \
             (none) mode",
        )),
        _ if key(engine, record, network).is_some() => Err(forbidden(format!(
            "endpoint with name {} already exists in network {}",
            record.name, network.name
        ))),
        _ => Ok(()),
    }
}

/// What is wrong with what is asked of a network, in dockerd's words.
pub(crate) fn check_settings(network: &Network, settings: &EndpointSettings) -> Result<(), String> {
    let mut wrong = Vec::new();
    let text = |key: &str| {
        let config = settings.ipam_config.as_ref()?;
        config.get(key).and_then(|value| value.as_str()).filter(|text| !text.is_empty())
    };
    if !network.is_custom() {
        if settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
            wrong.push(
                "network-scoped alias is supported only for containers in user defined networks"
                    .to_owned(),
            );
        }
        if text("IPv4Address").or(text("IPv6Address")).is_some() {
            wrong.push(
                "user specified IP address is supported on user defined networks only".to_owned(),
            );
        }
    }
    for (key, family) in [("IPv4Address", "IPv4"), ("IPv6Address", "IPv6")] {
        let Some(text) = text(key) else { continue };
        let address = text.parse::<std::net::IpAddr>().ok();
        if address.is_none_or(|it| it.is_unspecified() || it.is_ipv4() != (family == "IPv4")) {
            wrong.push(format!("invalid {family} address: {text}"));
        }
    }
    for (key, is_v4) in [("IPv4Address", true), ("IPv6Address", false)] {
        let Some(text) = text(key) else { continue };
        let mut chosen = network
            .pools
            .iter()
            .filter(|pool| pool.is_chosen && pool.subnet.addr().is_ipv4() == is_v4)
            .peekable();
        let address = text.parse::<std::net::IpAddr>().ok();
        if chosen.peek().is_none() {
            wrong.push(
                "user specified IP address is supported only when connecting to networks with user \
                 configured subnets"
                    .to_owned(),
            );
        } else if !chosen.any(|pool| address.is_some_and(|it| pool.subnet.contains(&it))) {
            wrong.push(format!("no configured subnet or ip-range contain the IP address {text}"));
        }
    }
    match endpoints::mac(settings) {
        // As with dockerd, nothing else is told then.
        Some(mac) if !is_mac(&mac) => Err(format!("invalid MAC address {mac}")),
        _ if wrong.is_empty() => Ok(()),
        _ => Err(format!("invalid endpoint settings:\n{}", join(&wrong))),
    }
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}

/// Takes a run from networks that its record does not name: a daemon that was killed may have left it on
/// one. No interface is ever missing, since a connection is on record only once it is made.
pub(crate) async fn mend(engine: &Engine, container: &Container) {
    let Ok(sandbox) = engine.node.sandboxes.find(&container.id) else { return };
    let record = container.record();
    let wanted: Vec<String> = endpoints::wanted(&record)
        .iter()
        .filter_map(|wanted| engine.networks.find(&wanted.name).ok())
        .map(|network| network.id.clone())
        .collect();
    for bridge in sandbox.bridges() {
        let has_interface = sandbox.endpoints().iter().any(|it| it.network == bridge.network);
        // One whose record is lost is nothing that the container has left.
        let is_known = engine.networks.find(&bridge.network).is_ok();
        if has_interface && (!is_known || wanted.contains(&bridge.network)) {
            continue;
        }
        if let Err(error) = sandbox.disconnect(&engine.node.host, &bridge.network).await {
            tracing::warn!(container = container.id, "leave a network: {error}");
        }
    }
    if let Err(error) = endpoints::lead(engine, container).await {
        tracing::warn!(container = container.id, "change its default route: {}", error.message);
    }
}
