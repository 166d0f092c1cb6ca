//! `/networks`.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Call, containers::network_settings::member};
use crate::{
    engine::Engine,
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    network::{Driver, Network, predefined::BRIDGE},
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
    let matches = |network: &&Network| {
        // The predefined ones are never unused.
        dangling != Some(true)
            && filters.matches_exactly("type", "builtin")
            && filters.matches_exactly("driver", &network.driver.to_string())
            && filters.matches_exactly("scope", "local")
            && filters.expressions("name").matches(&network.name)
            && filters.matches_prefix("id", &network.id)
            && filters.matches_labels("label", &Default::default())
    };
    let networks = call.engine.networks.all().iter().filter(matches);
    let listed: Vec<Value> = networks.map(|network| describe(network, Map::new())).collect();
    Ok(body::ok(&listed))
}

pub(super) fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let network = call.engine.networks.find(name)?;
    let mut members = Map::new();
    for container in call.engine.containers.all() {
        if let Some(member) = member(&call.engine, &container, network) {
            members.insert(container.id.clone(), member);
        }
    }
    Ok(body::ok(&describe(network, members)))
}

/// A network with dockerd's fields in its order.
fn describe(network: &Network, members: Map<String, Value>) -> Value {
    let config = network.subnet.map(|subnet| {
        json!([{ "Subnet": subnet.trunc().to_string(), "Gateway": subnet.addr().to_string() }])
    });
    let options = match network.driver {
        Driver::Bridge => json!({
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
            "com.docker.network.bridge.name": BRIDGE,
            "com.docker.network.driver.mtu": "1500",
        }),
        Driver::Host | Driver::Null => json!({}),
    };
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339_nano(network.created_at),
        "Scope": "local",
        "Driver": network.driver.to_string(),
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": config },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": members,
        "Options": options,
        "Labels": {},
    })
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct CreateBody {
    name: String,
}

/// Networks of the user's own are not served yet.
pub(super) async fn create(call: Call) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let CreateBody { name } = body::parse(request.into_body()).await?;
    if name.trim().is_empty() {
        return Err(Failure::bad_request("invalid name: name is empty"));
    }
    let is_predefined = engine.networks.all().iter().any(|network| network.name == name);
    match is_predefined || name == "default" {
        true => Err(Failure::new(
            StatusCode::FORBIDDEN,
            format!("operation is not permitted on predefined {name} network "),
        )),
        false => Err(not_yet(&format!("network {name} cannot be created"))),
    }
}

fn not_yet(what: &str) -> Failure {
    Failure::new(
        StatusCode::NOT_IMPLEMENTED,
        format!("{what}: only the networks bridge, host and none are served yet"),
    )
}

pub(super) fn remove(call: &Call, name: &str) -> Result<Answer> {
    let network = call.engine.networks.find(name)?;
    Err(Failure::new(
        StatusCode::FORBIDDEN,
        format!("{} is a pre-defined network and cannot be removed", network.name),
    ))
}

pub(super) fn prune(call: &Call) -> Result<Answer> {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["label", "label!", "until"])?;
    Ok(body::ok(&json!({ "NetworksDeleted": null })))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ConnectBody {
    container: String,
}

pub(super) async fn connect(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let ConnectBody { container } = body::parse(request.into_body()).await?;
    let (network, container) = (engine.networks.find(name)?, engine.containers.find(&container)?);
    let record = container.record();
    let own = engine.networks.of_mode(&record.host_config.network_mode)?;
    let forbidden = |text: String| Err(Failure::new(StatusCode::FORBIDDEN, text));
    match (network.driver, own.map(|own| own.driver)) {
        (Driver::Host, _) => forbidden(
            "cannot connect container to host network - container must be created in host network \
             mode"
                .to_owned(),
        ),
        (Driver::Null, _) | (_, Some(Driver::Null)) => forbidden(
            "container cannot be connected to multiple networks with one of the networks in \
             private (none) mode"
                .to_owned(),
        ),
        _ if own.is_some_and(|own| own.id == network.id) => forbidden(format!(
            "endpoint with name {} already exists in network {}",
            record.name, network.name
        )),
        _ => Err(not_yet("a container cannot be connected to a second network")),
    }
}

pub(super) async fn disconnect(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    let ConnectBody { container } = body::parse(request.into_body()).await?;
    let (network, container) = (engine.networks.find(name)?, engine.containers.find(&container)?);
    match is_on(&engine, &container.record().host_config.network_mode, network) {
        true => Err(not_yet("a container cannot be disconnected from its network")),
        false => Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("container {} is not connected to network {}", container.id, network.name),
        )),
    }
}

fn is_on(engine: &Engine, mode: &str, network: &Network) -> bool {
    let own = engine.networks.of_mode(mode);
    own.is_ok_and(|own| own.is_some_and(|own| own.id == network.id))
}
