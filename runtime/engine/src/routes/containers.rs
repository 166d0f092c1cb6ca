//! `/containers`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::{
    api::create::CreateBody,
    container::{
        create as made, life,
        object::{Container, Streams},
        state::{Phase, State},
    },
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        upgrade::{self, Framing},
    },
    streams::session,
};

mod inspect;
mod list;

pub(super) use self::{inspect::inspect, list::list};

pub(super) async fn create(call: Call) -> Result<Answer> {
    let Call { engine, query, request, .. } = call;
    let bytes = body::read(request.into_body()).await?;
    let asked = CreateBody::parse(&bytes)?;
    let container = made::create(&engine, query.get("name"), asked)?;
    engine.publish(&container, "create", json!({}));
    let answer = json!({ "Id": container.id, "Warnings": [] });
    Ok(body::json(StatusCode::CREATED, &answer))
}

pub(super) async fn start(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    Ok(match life::start(&call.engine, &container).await? {
        true => body::empty(StatusCode::NO_CONTENT),
        false => body::empty(StatusCode::NOT_MODIFIED),
    })
}

/// `SIGTERM`, `TERM`, `15` or `RTMIN+3`; `None` if none is named.
fn signal(text: &str) -> Result<Option<i32>> {
    if text.is_empty() {
        return Ok(None);
    }
    berth_node::container::parse_signal(&text.to_ascii_uppercase())
        .map(Some)
        .ok_or_else(|| Failure::bad_request(format!("invalid signal: {text}")))
}

pub(super) async fn stop(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let (grace, signal) = (call.query.number("t")?, signal(call.query.get("signal"))?);
    Ok(match life::stop(&call.engine, &container, signal, grace).await? {
        true => body::empty(StatusCode::NO_CONTENT),
        false => body::empty(StatusCode::NOT_MODIFIED),
    })
}

pub(super) async fn restart(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let (grace, signal) = (call.query.number("t")?, signal(call.query.get("signal"))?);
    life::stop(&call.engine, &container, signal, grace).await?;
    life::start(&call.engine, &container).await?;
    call.engine.publish(&container, "restart", json!({}));
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn kill(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let signal = signal(call.query.get("signal"))?.unwrap_or(nix::libc::SIGKILL);
    life::kill(&call.engine, &container, signal).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn remove(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    life::remove(&call.engine, &container, call.query.flag("force")).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn prune(call: &Call) -> Result<Answer> {
    let mut deleted = Vec::new();
    for container in call.engine.containers.all() {
        if matches!(container.state().phase, Phase::Created | Phase::Exited)
            && life::remove(&call.engine, &container, false).await.is_ok()
        {
            deleted.push(container.id.clone());
        }
    }
    let deleted = (!deleted.is_empty()).then_some(deleted);
    Ok(body::ok(&json!({ "ContainersDeleted": deleted, "SpaceReclaimed": 0 })))
}

pub(super) fn rename(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let wanted = call.query.get("name");
    if wanted.is_empty() {
        return Err(Failure::bad_request("Neither old nor new names may be empty"));
    }
    let old = container.record().name.clone();
    let new = call.engine.name(wanted, &container.id)?;
    if let Err(error) = container.change_record(|record| record.name.clone_from(&new)) {
        call.engine.containers.release(&new);
        return Err(error.into());
    }
    call.engine.containers.release(&old);
    call.engine.publish(&container, "rename", json!({ "oldName": format!("/{old}") }));
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn resize(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let (height, width) = (call.query.number("h")?, call.query.number("w")?);
    if let Ok(run) = call.engine.node.containers.find(&container.id) {
        run.resize(width.unwrap_or(0), height.unwrap_or(0)).await;
    }
    Ok(body::empty(StatusCode::OK))
}

/// Answers when a condition is met. The headers are sent at once: the CLI starts the container only
/// after it has them.
pub(super) fn wait(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let condition = call.query.get("condition");
    let before = container.state();
    let met: fn(&State, u64) -> bool = match condition {
        "" | "not-running" => {
            |state, _| !state.is_running() && !matches!(state.phase, Phase::Restarting)
        }
        "next-exit" => |state, ended| state.ended > ended || state.phase == Phase::Removed,
        "removed" => |state, _| state.phase == Phase::Removed,
        _ => return Err(Failure::bad_request(format!("invalid condition: \"{condition}\""))),
    };
    let mut state = container.watch();
    let waiting = async move {
        // Keeps the sender of the states.
        let container = container;
        let last = match state.wait_for(|state| met(state, before.ended)).await {
            Ok(state) => state.last.clone(),
            Err(_) => container.state().last,
        };
        let mut answer = json!({ "StatusCode": last.exit_code });
        if !last.error.is_empty() {
            answer["Error"] = json!({ "Message": last.error });
        }
        Ok(Bytes::from(format!("{answer}\n")))
    };
    Ok(body::streaming("application/json", stream::once(waiting)))
}

pub(super) async fn attach(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, query, request, .. } = call;
    let container = engine.containers.find(name)?;
    let record = container.record();
    let framing = Framing::of(record.config.tty);
    let wanted = (
        query.flag("stdin") && record.config.open_stdin,
        query.flag("stdout"),
        // A terminal has one output.
        query.flag("stderr") && !record.config.tty,
    );
    let (own, theirs) = session::open(wanted)?;
    if query.flag("stream") {
        let session::Theirs { stdin, stdout, stderr } = theirs;
        life::attach(&engine, &container, Streams { stdin, stdout, stderr }).await?;
    }
    engine.publish(&container, "attach", json!({}));
    if !upgrade::is_wanted(&request) {
        return Err(Failure::bad_request("attach needs the header Upgrade: tcp"));
    }
    // dockerode sends a body, which is no input of the container.
    let (parts, incoming) = request.into_parts();
    let _ = body::read(incoming).await;
    let mut request = http::Request::from_parts(parts, ());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(client) = upgraded.await {
            session::copy(own, framing, hyper_util::rt::TokioIo::new(client)).await;
        }
    });
    Ok(upgrade::switching(framing))
}

pub(super) fn logs(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let _ = (&container, Duration::ZERO, Value::Null);
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "logs"))
}

/// The container's name as answers have it.
fn slashed(container: &Arc<Container>) -> String {
    format!("/{}", container.record().name)
}
