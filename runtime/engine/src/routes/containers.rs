//! `/containers`.

use std::{num::IntErrorKind, sync::Arc};

use http::StatusCode;
use serde_json::json;

use super::{Call, query::Query};
use crate::{
    container::{
        life::{self, With},
        object::Container,
    },
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    network::names,
};

mod archive;
mod attach;
mod changes;
mod create;
mod export;
mod inspect;
mod list;
mod logs;
mod mount;
pub(super) mod network_settings;
mod prune;
mod stats;
mod top;
mod update;
mod wait;

pub(super) use self::{
    archive::{archive, extract},
    attach::{attach, attach_websocket},
    changes::changes,
    create::create,
    export::export,
    inspect::inspect,
    list::{all_with_sizes, list},
    logs::logs,
    prune::prune,
    stats::stats,
    top::top,
    update::update,
    wait::wait,
};

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
    let parsed = berth_node::container::parse_signal(&text.to_ascii_uppercase());
    parsed.map(Some).ok_or_else(|| match text.parse::<i32>() {
        Ok(number) if number != 0 => {
            Failure::bad_request(format!("the linux daemon does not support signal {number}"))
        }
        _ => Failure::bad_request(format!("invalid signal: {text}")),
    })
}

/// Says what a verb could not do to which container, by the name that the client gave.
fn cannot(verb: &str, name: &str, failure: Failure) -> Failure {
    Failure { message: format!("cannot {verb} container: {name}: {}", failure.message), ..failure }
}

pub(super) async fn stop(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let grace = call.query.number("t")?;
    // dockerd answers 500 here, and 400 where it kills.
    let signal = signal(call.query.get("signal")).map_err(|failure| Failure {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        ..cannot("stop", name, failure)
    })?;
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
    let killing = async {
        let container = call.engine.containers.find(name)?;
        let signal = signal(call.query.get("signal"))?.unwrap_or(nix::libc::SIGKILL);
        life::kill(&call.engine, &container, signal).await
    };
    killing.await.map_err(|failure| cannot("kill", name, failure))?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn pause(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    life::pause(&call.engine, &container).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn unpause(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    life::unpause(&call.engine, &container).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn remove(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let with = With { force: call.query.flag("force"), volumes: call.query.flag("v") };
    life::remove(&call.engine, &container, name, with).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) fn rename(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let wanted = call.query.get("name");
    if wanted.is_empty() {
        return Err(Failure::bad_request("Neither old nor new names may be empty"));
    }
    let old = container.record().name.clone();
    if wanted.strip_prefix('/').unwrap_or(wanted) == old {
        return Err(Failure::bad_request(
            "Renaming a container with the same name as its current name",
        ));
    }
    let slashed = format!("/{}", wanted.trim_start_matches('/'));
    let new = call.engine.name(&slashed, &container.id).map_err(|failure| {
        let text = format!("Error when allocating new name: {}", failure.message);
        Failure::new(failure.status, text)
    })?;
    if let Err(error) = container.change_record(|record| record.name.clone_from(&new)) {
        call.engine.containers.release(&new);
        return Err(error.into());
    }
    call.engine.containers.release(&old);
    names::update(&call.engine, &container);
    call.engine.publish(&container, "rename", json!({ "oldName": format!("/{old}") }));
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn resize(call: &Call, name: &str) -> Result<Answer> {
    let (height, width) = size(&call.query)?;
    let container = call.engine.containers.find(name)?;
    let run = life::running(&call.engine, &container).filter(|_| container.state().is_running());
    let Some(run) = run else {
        let id = &container.id;
        return Err(Failure::conflict(format!("container {id} is not running")));
    };
    let short = |length| u16::try_from(length).unwrap_or(u16::MAX);
    run.resize(short(width), short(height)).await;
    let attributes = json!({ "height": height.to_string(), "width": width.to_string() });
    call.engine.publish(&container, "resize", attributes);
    Ok(body::empty(StatusCode::OK))
}

/// The height and the width of a terminal, `h` and `w`.
pub(super) fn size(query: &Query) -> Result<(u32, u32)> {
    let number = |name, what| {
        let text = query.get(name);
        text.parse::<u32>().map_err(|error| {
            let why = match error.kind() {
                IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            Failure::bad_request(format!("invalid resize {what} \"{text}\": {why}"))
        })
    };
    Ok((number("h", "height")?, number("w", "width")?))
}

/// The container's name as answers have it.
fn slashed(container: &Arc<Container>) -> String {
    format!("/{}", container.record().name)
}
