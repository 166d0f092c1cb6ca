//! The networks of a request, as far as the names of the built-in ones tell.

use std::net::Ipv4Addr;

use crate::{
    api::create::{CreateBody, EndpointSettings},
    http::error::{Failure, Result},
};

/// Checks the endpoints, and gives a hardware address of the old field to the endpoint of the
/// container's own network. Returns the warnings.
pub(super) fn check(body: &mut CreateBody) -> Result<Vec<String>> {
    let mode = body.host_config.network_mode.clone();
    let mut warnings = Vec::new();
    let mac = body.config.mac_address.clone().filter(|mac| !mac.is_empty());
    let has_own_network = mode != "host" && mode != "none" && !mode.starts_with("container:");
    if let Some(mac) = mac.filter(|_| has_own_network) {
        let endpoints = &mut body.networking_config.endpoints_config;
        let endpoint = endpoints.entry(mode.clone()).or_default().get_or_insert_default();
        endpoint.mac_address.get_or_insert(mac);
        warnings.push(
            "The container-wide MacAddress field is now deprecated. It should be specified in \
             EndpointsConfig instead."
                .to_owned(),
        );
    }
    for (name, endpoint) in &body.networking_config.endpoints_config {
        let Some(endpoint) = endpoint else { continue };
        // One whose network is not that of the container is never connected.
        if *name == mode {
            endpoint_of(name, endpoint).map_err(|why| {
                Failure::bad_request(format!("invalid config for network {name}: {why}"))
            })?;
        }
    }
    Ok(warnings)
}

fn endpoint_of(name: &str, endpoint: &EndpointSettings) -> Result<(), String> {
    let mut wrong = Vec::new();
    if name == "bridge" {
        if endpoint.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
            wrong.push(
                "network-scoped alias is supported only for containers in user defined networks"
                    .to_owned(),
            );
        }
        let address = endpoint.ipam_config.as_ref().and_then(|config| config.get("IPv4Address"));
        if let Some(address) = address.and_then(|address| address.as_str()) {
            wrong.push(
                "user specified IP address is supported on user defined networks only".to_owned(),
            );
            if address.parse::<Ipv4Addr>().is_err() {
                wrong.push(format!("invalid IPv4 address: {address}"));
            }
            wrong.push(
                "user specified IP address is supported only when connecting to networks with \
                 user configured subnets"
                    .to_owned(),
            );
        }
    }
    match wrong.as_slice() {
        [] => {}
        [one] => return Err(format!("invalid endpoint settings:\n{one}")),
        several => return Err(format!("invalid endpoint settings:\n* {}", several.join("\n* "))),
    }
    match endpoint.mac_address.as_deref().filter(|mac| !mac.is_empty()) {
        Some(mac) if !is_mac(mac) => Err(format!("invalid MAC address {mac}")),
        _ => Ok(()),
    }
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}
