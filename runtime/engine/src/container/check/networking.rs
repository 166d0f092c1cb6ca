//! The networks of a request. One that is not there is the start's trouble, as with dockerd.

use crate::{
    api::create::CreateBody,
    engine::Engine,
    http::error::{Failure, Result},
    network::connect,
};

/// Checks the endpoints, and gives a hardware address of the old field to the endpoint of the
/// container's own network. Returns the warnings.
pub(super) fn check(engine: &Engine, body: &mut CreateBody) -> Result<Vec<String>> {
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
        let (Some(endpoint), Ok(network)) = (endpoint, engine.networks.find(name)) else {
            continue;
        };
        connect::check_settings(&network, endpoint).map_err(|why| {
            Failure::bad_request(format!("invalid config for network {name}: {why}"))
        })?;
    }
    Ok(warnings)
}
