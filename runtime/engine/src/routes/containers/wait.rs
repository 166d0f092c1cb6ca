//! `POST /containers/{name}/wait`.

use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

use super::Call;
use crate::{
    container::state::{Last, Phase, State},
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Waited {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<WaitError>,
    status_code: i32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct WaitError {
    message: String,
}

/// Answers when a condition is met. The headers are sent at once: the CLI starts the container only
/// after it has them.
pub(in crate::routes) fn wait(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let condition = call.query.get("condition");
    let before = container.state();
    let met: fn(&State, u64) -> bool = match condition {
        "" | "not-running" => |state, _| !state.is_active(),
        "next-exit" => |state, ended| state.ended > ended || state.phase == Phase::Removed,
        "removed" => |state, _| state.phase == Phase::Removed,
        _ => return Err(Failure::bad_request(format!("invalid condition: \"{condition}\""))),
    };
    let mut state = container.watch();
    // What is removed has no error left, not even that of its start.
    let awaits_removal = condition == "removed";
    let waiting = async move {
        // Keeps the sender of the states.
        let container = container;
        let last = match state.wait_for(|state| met(state, before.ended)).await {
            Ok(state) => state.last.clone(),
            Err(_) => container.state().last,
        };
        let last = match awaits_removal {
            true => Last { error: String::new(), ..last },
            false => last,
        };
        let mut answer = serde_json::to_vec(&waited(last)).unwrap_or_default();
        answer.push(b'\n');
        Ok(Bytes::from(answer))
    };
    Ok(body::streaming("application/json", stream::once(waiting)))
}

fn waited(last: Last) -> Waited {
    let error = (!last.error.is_empty()).then_some(WaitError { message: last.error });
    Waited { error, status_code: last.exit_code }
}
