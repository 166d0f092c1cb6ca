//! The networks that a container is on, or will be once it runs.

use std::sync::Arc;

use berth_node::network::Bridge;

use super::{Driver, Network, object::Wish};
use crate::{
    api::create::EndpointSettings,
    container::{object::Container, record::Record},
    engine::Engine,
    http::error::{Failure, Result},
};

/// What a container asks of a network.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// As the request has it: a name, or an id.
    pub name: String,
    pub settings: EndpointSettings,
}

/// The networks that a record names, that of its mode first, then by name. One that shares another's
/// has none.
pub(crate) fn wanted(record: &Record) -> Vec<Wanted> {
    let mode = record.host_config.network_mode.as_str();
    if mode.starts_with("container:") {
        return Vec::new();
    }
    let endpoints = &record.networking.endpoints_config;
    if endpoints.is_empty() && !record.lists_networks {
        return vec![of_mode(record)];
    }
    let mut wanted: Vec<Wanted> = endpoints
        .iter()
        .map(|(name, settings)| Wanted {
            name: name.clone(),
            settings: settings.clone().unwrap_or_default(),
        })
        .collect();
    wanted.sort_by_key(|one| one.name != mode);
    wanted
}

fn of_mode(record: &Record) -> Wanted {
    let mode = record.host_config.network_mode.as_str();
    let name = if mode.is_empty() { "bridge" } else { mode };
    Wanted { name: name.to_owned(), settings: EndpointSettings::default() }
}

/// Writes down the network of the mode, if a record names none: a container that was taken from all its
/// networks comes back to that one with its next start, as with dockerd.
pub(crate) fn come_back(record: &mut Record) {
    let wanted = of_mode(record);
    record.networking.endpoints_config.insert(wanted.name, Some(wanted.settings));
}

/// The bridges of a run.
///
/// # Errors
/// 404 for a network that is not there, 400 for an address that is none.
pub(crate) fn bridges(engine: &Engine, record: &Record) -> Result<Vec<Bridge>> {
    let mut found: Vec<(Arc<Network>, EndpointSettings)> = Vec::new();
    for Wanted { name, settings } in wanted(record) {
        let network = engine.networks.find(&name)?;
        if network.driver == Driver::Bridge && !found.iter().any(|(it, _)| it.id == network.id) {
            found.push((network, settings));
        }
    }
    let default = default_route(&found);
    let bridges = found.iter().enumerate().map(|(index, (network, settings))| {
        let mac = mac(settings).or_else(|| {
            // Old clients ask for one of the container.
            record.config.mac_address.clone().filter(|mac| index == 0 && !mac.is_empty())
        });
        let wish = Wish {
            inside: format!("eth{index}"),
            is_default: default == Some(index),
            addresses: addresses(settings)?,
            mac,
        };
        Ok(network.bridge(wish))
    });
    bridges.collect()
}

/// Which of several networks leads outside: the one with the highest priority, and of those the first
/// by name. One that is internal leads nowhere.
fn default_route(networks: &[(Arc<Network>, EndpointSettings)]) -> Option<usize> {
    let leads_out = |network: &Network| !network.custom.as_ref().is_some_and(|it| it.internal);
    let candidates = networks.iter().enumerate().filter(|(_, (network, _))| leads_out(network));
    let best = candidates.min_by_key(|(_, (network, settings))| {
        (-settings.gw_priority.unwrap_or_default(), network.name.clone())
    });
    best.map(|(index, _)| index)
}

/// Lets the default route of a container that runs, and its ports, lead to the network that its record
/// has for it.
///
/// # Errors
/// A port of the host is another's by now, or what the kernel says.
pub(super) async fn lead(engine: &Engine, container: &Container) -> Result<()> {
    let wanted = bridges(engine, &container.record())?;
    let leading = wanted.iter().find(|bridge| bridge.is_default);
    let sandbox = engine.node.sandboxes.find(&container.id)?;
    let network = leading.map(|bridge| bridge.network.as_str());
    Ok(sandbox.lead(&engine.node.host, network).await?)
}

/// The MAC address that is asked for.
pub(super) fn mac(settings: &EndpointSettings) -> Option<String> {
    settings.mac_address.clone().filter(|mac| !mac.is_empty())
}

/// The addresses that are asked for.
///
/// # Errors
/// 400 for what is none.
pub(super) fn addresses(settings: &EndpointSettings) -> Result<Vec<std::net::IpAddr>> {
    let Some(config) = &settings.ipam_config else { return Ok(Vec::new()) };
    let texts =
        ["IPv4Address", "IPv6Address"].map(|key| config.get(key).and_then(|it| it.as_str()));
    let texts = texts.into_iter().flatten().filter(|text| !text.is_empty());
    let parse = |text: &str| {
        text.parse().map_err(|_| Failure::bad_request(format!("invalid IP address: {text}")))
    };
    texts.map(parse).collect()
}

/// The names by which others on a network of a user's find a container: its own, its aliases, its id
/// in short, and its hostname where that is another.
pub(crate) fn names(record: &Record, settings: &EndpointSettings) -> Vec<String> {
    let mut names = vec![record.name.clone()];
    let hostname = Some(&record.config.hostname).filter(|name| !name.is_empty());
    let short = record.id[..12].to_owned();
    // Names are words of a line of /etc/hosts.
    let is_word = |name: &str| !name.contains(|c: char| c.is_whitespace() || c.is_control());
    for name in settings.aliases.iter().flatten().chain([&short]).chain(hostname) {
        if !names.contains(name) && is_word(name) {
            names.push(name.clone());
        }
    }
    names
}
