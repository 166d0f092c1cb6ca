//! `/build`: images from Dockerfiles.

use std::io;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::{
    build::{self, BuildFailure, Options, Started},
    http::{
        body::{self, Answer},
        client::Connection,
        error::{Failure, Result},
    },
};

/// Builds an image. What goes wrong before there is any output has a status; later, it is the last line.
///
/// # Errors
/// In dockerd's words.
pub(super) async fn build(call: Call) -> Result<Answer> {
    let options = match Options::parse(&call.query, call.request.headers()) {
        Ok(options) => options,
        Err(refused) => {
            body::discard(call.request.into_body()).await;
            return Err(refused);
        }
    };
    let is_quiet = options.is_quiet;
    let connection = call.request.extensions().get::<Connection>();
    let client = connection.map(Connection::presence);
    let mut started = build::start(call.engine, options, call.request.into_body(), client);
    if is_quiet {
        return quiet(started).await;
    }
    match started.lines.recv().await {
        Some(first) => Ok(body::streaming("application/json", lines(first, started))),
        None => {
            let ended = started.ended.await.context("build")?;
            ended.map_err(|failed| failed.failure)?;
            Ok(body::empty(StatusCode::OK))
        }
    }
}

/// The output, and how it ended if that was badly.
fn lines(
    first: Value,
    started: Started,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    let rest = stream::unfold(Some(started), |started| async {
        let mut started = started?;
        if let Some(line) = started.lines.recv().await {
            return Some((line, Some(started)));
        }
        let ended = started.ended.await.context("build");
        let failed = ended.map_err(BuildFailure::from).flatten().err()?.line();
        Some((failed, None))
    });
    stream::once(async { first }).chain(rest).map(|line| Ok(Bytes::from(body::line(&line))))
}

/// Nothing but the id, or else all that there was.
async fn quiet(mut started: Started) -> Result<Answer> {
    let mut told = String::new();
    while let Some(line) = started.lines.recv().await {
        told += &body::line(&line);
    }
    match started.ended.await.context("build")? {
        Ok(image) => told = body::line(&json!({ "stream": format!("{}\n", image.id) })),
        Err(failed) if told.is_empty() => return Err(failed.failure),
        Err(failed) => told += &body::line(&failed.line()),
    }
    let told = stream::iter([Ok(Bytes::from(told))]);
    Ok(body::streaming("application/json", told))
}

/// Cancels a build that was given an id.
///
/// # Errors
/// 400 without an id, as dockerd.
pub(super) fn cancel(call: &Call) -> Result<Answer> {
    match call.query.get("id") {
        "" => Err(Failure::bad_request("build ID not provided")),
        id => {
            call.engine.builds.cancel(id);
            Ok(body::streaming("application/json", stream::empty()))
        }
    }
}
