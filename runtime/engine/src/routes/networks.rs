//! `/networks`.

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Call;
use crate::{
    api::create::EndpointSettings,
    container::object::Container,
    engine::Engine,
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    network::{Driver, Network, Pool, connect, create},
    time::rfc3339_nano,
};

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

pub(super) fn list(call: &Call) -> Result<Answer> {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&FILTERS)?;
    if let Some(kind) = filters.values("type").find(|kind| !["custom", "builtin"].contains(kind)) {
        return Err(Failure::bad_request(format!("invalid filter 'type={kind}'")));
    }
    let dangling = filters.flag("dangling")?;
    let is_dangling = |network: &Network| {
        // The predefined ones are never unused.
        network.is_custom() && call.engine.members(network).is_empty()
    };
    let none = BTreeMap::new();
    let matches = |network: &Network| {
        let labels = network.custom.as_ref().map_or(&none, |custom| &custom.labels);
        let kind = if network.is_custom() { "custom" } else { "builtin" };
        dangling.is_none_or(|wanted| is_dangling(network) == wanted)
            && filters.matches_exactly("type", kind)
            && filters.matches_exactly("driver", &network.driver.to_string())
            && filters.matches_exactly("scope", "local")
            && filters.expressions("name").matches(&network.name)
            && filters.matches_prefix("id", &network.id)
            && filters.matches_labels("label", labels)
    };
    let networks = call.engine.networks.all().into_iter().filter(|network| matches(network));
    let listed: Vec<Value> = networks.map(|network| describe(&network, Map::new())).collect();
    Ok(body::ok(&listed))
}

pub(super) fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let network = call.engine.networks.find(name)?;
    Ok(body::ok(&describe(&network, containers(&call.engine, &network))))
}

/// What a network says of the containers that run on it.
fn containers(engine: &Engine, network: &Network) -> Map<String, Value> {
    let members = engine.members(network).into_iter();
    let described = members.map(|member| {
        let address = |address: Option<(ipnet::IpNet, _)>| {
            address.map(|(address, _)| address.to_string()).unwrap_or_default()
        };
        let endpoint = member.endpoint.as_ref();
        let value = json!({
            "Name": member.name,
            "EndpointID": member.endpoint_id,
            "MacAddress": endpoint.map(|it| it.mac.as_str()).unwrap_or_default(),
            "IPv4Address": address(endpoint.and_then(|it| it.ipv4)),
            "IPv6Address": address(endpoint.and_then(|it| it.ipv6)),
        });
        (member.id, value)
    });
    described.collect()
}

/// A network with dockerd's fields in its order.
fn describe(network: &Network, members: Map<String, Value>) -> Value {
    let config: Vec<Value> = network.pools.iter().map(describe_pool).collect();
    let none = Default::default();
    let custom = network.custom.as_ref().unwrap_or(&none);
    let options = match (network.driver, &network.custom) {
        (_, Some(custom)) => json!(custom.options),
        (Driver::Bridge, None) => json!({
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
            "com.docker.network.bridge.name": network.interface(),
            "com.docker.network.driver.mtu": "1500",
        }),
        (Driver::Host | Driver::Null, None) => json!({}),
    };
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339_nano(network.created_at),
        "Scope": "local",
        "Driver": network.driver.to_string(),
        "EnableIPv4": network.custom.as_ref().is_none_or(|custom| custom.ipv4),
        "EnableIPv6": custom.ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": custom.ipam_options,
            "Config": (!config.is_empty()).then_some(config),
        },
        "Internal": custom.internal,
        "Attachable": custom.attachable,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": members,
        "Options": options,
        "Labels": custom.labels,
    })
}

fn describe_pool(pool: &Pool) -> Value {
    let mut described = Map::new();
    described.insert("Subnet".to_owned(), pool.subnet.to_string().into());
    if let Some(range) = pool.range {
        described.insert("IPRange".to_owned(), range.to_string().into());
    }
    if pool.shows_gateway {
        described.insert("Gateway".to_owned(), pool.gateway.to_string().into());
    }
    if !pool.auxiliary.is_empty() {
        described.insert("AuxiliaryAddresses".to_owned(), json!(pool.auxiliary));
    }
    described.into()
}

pub(super) async fn create(call: Call) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let body = body::read(request.into_body()).await?;
    let wanted = create::Request::parse(&body)?;
    let id = engine.make_network(wanted).await?;
    Ok(body::json(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" })))
}

pub(super) async fn remove(call: &Call, name: &str) -> Result<Answer> {
    let network = call.engine.networks.find(name)?;
    call.engine.remove_network(&network).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Removes the networks that nobody is on. One that cannot be removed stays.
pub(super) async fn prune(call: &Call) -> Result<Answer> {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["label", "label!", "until"])?;
    let until = filters.until(berth_base::clock::now());
    let until = until.map_err(|bad| Failure::bad_request(String::from(bad)))?;
    let mut deleted = Vec::new();
    for network in call.engine.networks.all() {
        let Some(custom) = &network.custom else { continue };
        let is_wanted = until.is_none_or(|until| network.created_at <= until)
            && filters.matches_labels_of_prune(&custom.labels);
        if is_wanted && call.engine.remove_network(&network).await.is_ok() {
            deleted.push(network.name.clone());
        }
    }
    let nothing = Map::from_iter([("reclaimed".to_owned(), "0".into())]);
    call.engine.events.publish("network", "prune", "", nothing);
    Ok(body::ok(&json!({ "NetworksDeleted": (!deleted.is_empty()).then_some(deleted) })))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ConnectBody {
    container: String,
    endpoint_config: Option<EndpointSettings>,
}

fn find(engine: &Engine, name: &str) -> Result<Arc<Container>> {
    match name {
        "" => Err(Failure::bad_request("invalid name or ID supplied: \"\"")),
        name => engine.containers.find(name),
    }
}

pub(super) async fn connect(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let ConnectBody { container, endpoint_config } = body::parse(request.into_body()).await?;
    let (network, container) = (engine.networks.find(name)?, find(&engine, &container)?);
    let settings = endpoint_config.unwrap_or_default();
    connect::connect(&engine, &network, &container, settings).await?;
    Ok(body::empty(StatusCode::OK))
}

pub(super) async fn disconnect(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let ConnectBody { container, .. } = body::parse(request.into_body()).await?;
    let (network, container) = (engine.networks.find(name)?, find(&engine, &container)?);
    connect::disconnect(&engine, &network, &container).await?;
    Ok(body::empty(StatusCode::OK))
}
