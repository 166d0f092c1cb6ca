//! What this engine does not have. Where a dockerd may lack it too, the answer is that of a dockerd
//! without it: clients know that one. Otherwise it says that it is not there.

use http::{Method, StatusCode};
use serde_json::json;

use super::Call;
use crate::http::{
    body::{self, Answer},
    error::{Failure, Result},
};

pub(super) const NO_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker \
                          swarm join\" to connect this node to swarm and try again.";

/// Answers a request for something that no other route knows.
///
/// # Errors
/// In nearly all cases: 404 for what is not there, 501 for what is not made yet, 503 of a swarm.
pub(super) async fn respond(call: Call, method: &Method, segments: &[&str]) -> Result<Answer> {
    let answer = answer(&call, method, segments);
    body::discard(call.request.into_body()).await;
    answer
}

fn answer(call: &Call, method: &Method, segments: &[&str]) -> Result<Answer> {
    let read = method == Method::GET || method == Method::HEAD;
    let post = method == Method::POST;
    match segments {
        ["plugins"] if read => Ok(body::ok(&[(); 0])),
        ["plugins", name, ..] => Err(Failure::not_found(format!("plugin \"{name}\" not found"))),
        ["build", "prune"] if post => {
            Ok(body::ok(&json!({ "CachesDeleted": null, "SpaceReclaimed": 0 })))
        }
        ["commit"] if post => {
            call.engine.containers.find(call.query.get("container"))?;
            not_made("committing containers")
        }
        ["distribution", .., "json"] if read => not_made("asking registries"),
        ["swarm", "leave"] if post => swarm("This node is not part of a swarm"),
        // dockerd's sentence would send people in a circle here.
        ["swarm", "init" | "join"] if post => {
            Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "berth has no swarm mode"))
        }
        ["swarm", ..]
        | ["nodes", ..]
        | ["services", ..]
        | ["tasks", ..]
        | ["secrets", ..]
        | ["configs", ..] => swarm(NO_MANAGER),
        _ => Err(Failure::not_found("page not found")),
    }
}

fn not_made(what: &str) -> Result<Answer> {
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not implemented yet")))
}

fn swarm(text: &str) -> Result<Answer> {
    Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text))
}
