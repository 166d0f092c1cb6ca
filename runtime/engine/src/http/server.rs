//! The socket and its connections.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Context;
use berth_base::{
    accept::Acceptor,
    observe::{self, steps::docker_rpc},
};
use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};

use super::{
    body::Answer,
    client::Connection,
    version::{NEWEST, OLDEST},
};
use crate::{engine::Engine, routes};

/// How long a client may take to send the headers of a request that it has begun.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// hyper's buffer for a request's headers, in bytes.
const MAX_HEADERS: usize = 64 << 10;

/// Serves requests until the process ends.
///
/// # Errors
/// The socket accepts no more clients.
pub async fn serve(engine: Arc<Engine>, listener: UnixListener) -> anyhow::Result<()> {
    // It survives what accept(2) reports about single clients.
    let mut listener = Acceptor::new(listener);
    loop {
        let stream = listener.accept().await.context("accept clients of the engine's socket")?;
        tokio::spawn(connection(engine.clone(), stream));
    }
}

async fn connection(engine: Arc<Engine>, stream: UnixStream) {
    let socket = match Connection::of(&stream) {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!("a client of the engine: {error}"),
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        let engine = engine.clone();
        request.extensions_mut().insert(socket.clone());
        async move { Ok::<_, Infallible>(respond(engine, request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(MAX_HEADERS)
        // Clients without input half-close right after their request: that is not their end.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = serving.await {
        tracing::debug!("a client of the engine: {error}");
    }
}

/// Runs the request in a task of its own: a client that goes away ends its connection, and must not
/// end half of a verb.
async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Answer {
    let answering = tokio::spawn(routes::respond(engine, request));
    let mut answer = answering.await.unwrap_or_else(|error| {
        tracing::error!("a request of the engine failed: {error}");
        super::body::failed(&super::error::Failure::new(
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "berthd failed: see its log",
        ))
    });
    if let Err(error) = observe::before(docker_rpc::RESPONSE) {
        answer = super::body::failed(&error.into());
    }
    let headers = answer.headers_mut();
    for (name, value) in
        [("api-version", NEWEST.to_string()), ("min-api-version", OLDEST.to_string())]
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers.insert(header::SERVER, HeaderValue::from_static("Docker/28.5.2 (linux)"));
    answer
}
