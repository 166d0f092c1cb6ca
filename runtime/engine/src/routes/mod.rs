//! Which request is answered by what.

mod absent;
mod auth;
mod build;
mod commit;
mod containers;
mod events;
mod exec;
pub(crate) mod execs;
mod images;
mod networks;
pub(crate) mod query;
mod system;
mod volumes;

use std::sync::Arc;

use http::{Method, Request};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

use self::query::Query;
use crate::{
    engine::Engine,
    http::{
        body::{self, Answer},
        error::Result,
        observe::Observed,
        version::{self, Version},
    },
};

/// A request, taken apart.
pub(crate) struct Call {
    pub engine: Arc<Engine>,
    pub version: Version,
    pub query: Query,
    pub request: Request<Incoming>,
}

pub(crate) async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let observed = Observed::begin(&request);
    let answer = observed.around(route(engine, request)).await.unwrap_or_else(|failure| {
        tracing::debug!(%method, path, status = %failure.status, "{}", failure.message);
        body::failed(&failure)
    });
    tracing::trace!(%method, path, status = %answer.status(), "answered");
    observed.end(answer.status());
    answer
}

async fn route(engine: Arc<Engine>, request: Request<Incoming>) -> Result<Answer> {
    let method = request.method().clone();
    let full = request.uri().path().to_owned();
    let (version, path) = version::split(&full)?;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let segments: Vec<String> = path
        .trim_start_matches('/')
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let call = Call { engine, version, query, request };
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    // A HEAD is answered as its GET; hyper leaves the body out.
    let read = method == get || method == Method::HEAD;
    match segments.as_slice() {
        ["_ping"] if read => Ok(system::ping()),
        ["version"] if read => system::version(&call),
        ["info"] if read => system::info(&call).await,
        ["system", "df"] if read => system::disk_usage(&call).await,
        ["build"] if method == post => build::build(call).await,
        ["build", "cancel"] if method == post => build::cancel(&call),
        ["auth"] if method == post => auth::login(call).await,
        ["events"] if read => events::events(&call),
        ["commit"] if method == post => commit::commit(call).await,
        ["containers", "json"] if read => containers::list(&call).await,
        ["containers", "create"] if method == post => containers::create(call).await,
        ["containers", "prune"] if method == post => containers::prune(&call).await,
        ["containers", name] if method == delete => containers::remove(&call, name).await,
        ["containers", name, "json"] if read => containers::inspect(&call, name).await,
        ["containers", name, "top"] if read => containers::top(&call, name).await,
        ["containers", name, "update"] if method == post => containers::update(call, name).await,
        ["containers", name, "logs"] if read => containers::logs(call, name).await,
        ["containers", name, "stats"] if read => containers::stats(call, name).await,
        ["containers", name, "start"] if method == post => containers::start(&call, name).await,
        ["containers", name, "stop"] if method == post => containers::stop(&call, name).await,
        ["containers", name, "restart"] if method == post => containers::restart(&call, name).await,
        ["containers", name, "kill"] if method == post => containers::kill(&call, name).await,
        ["containers", name, "pause"] if method == post => containers::pause(&call, name).await,
        ["containers", name, "unpause"] if method == post => containers::unpause(&call, name).await,
        ["containers", name, "wait"] if method == post => containers::wait(&call, name),
        ["containers", name, "rename"] if method == post => containers::rename(&call, name),
        ["containers", name, "resize"] if method == post => containers::resize(&call, name).await,
        ["containers", name, "attach"] if method == post => containers::attach(call, name).await,
        ["containers", name, "attach", "ws"] if read => {
            containers::attach_websocket(call, name).await
        }
        ["containers", name, "archive"] if read => containers::archive(&call, name).await,
        ["containers", name, "archive"] if method == Method::PUT => {
            containers::extract(call, name).await
        }
        ["containers", name, "changes"] if read => containers::changes(&call, name).await,
        ["containers", name, "export"] if read => containers::export(&call, name).await,
        ["containers", name, "exec"] if method == post => exec::create(call, name).await,
        ["exec", id, "start"] if method == post => exec::start(call, id).await,
        ["exec", id, "resize"] if method == post => exec::resize(&call, id),
        ["exec", id, "json"] if read => exec::inspect(&call, id),
        ["images", "json"] if read => images::list(&call).await,
        ["images", "create"] if method == post && call.query.get("fromImage").is_empty() => {
            images::import(call).await
        }
        ["images", "create"] if method == post => images::pull(call).await,
        ["images", name @ .., "json"] if read => images::inspect(&call, &name.join("/")).await,
        ["images", name @ .., "history"] if read => images::history(&call, &name.join("/")),
        ["images", "search"] if read => images::search(call).await,
        ["images", "get"] if read => images::save(&call),
        ["images", "load"] if method == post => images::load(call).await,
        ["images", name @ .., "get"] if read => images::save_one(&call, &name.join("/")),
        ["images", "prune"] if method == post => images::prune(&call),
        ["images", name @ .., "push"] if method == post => {
            images::push(call, &name.join("/")).await
        }
        ["images", name @ .., "tag"] if method == post => images::tag(&call, &name.join("/")),
        ["images", name @ ..] if method == delete && !name.is_empty() => {
            images::remove(&call, &name.join("/"))
        }
        ["networks"] if read => networks::list(&call),
        ["networks", "create"] if method == post => networks::create(call).await,
        ["networks", "prune"] if method == post => networks::prune(&call).await,
        ["networks", name] if read => networks::inspect(&call, name),
        ["networks", name] if method == delete => networks::remove(&call, name).await,
        ["networks", name, "connect"] if method == post => networks::connect(call, name).await,
        ["networks", name, "disconnect"] if method == post => {
            networks::disconnect(call, name).await
        }
        ["volumes"] if read => volumes::list(&call),
        ["volumes", "create"] if method == post => volumes::create(call).await,
        ["volumes", "prune"] if method == post => volumes::prune(&call).await,
        ["volumes", name] if read => volumes::inspect(&call, name),
        ["volumes", name] if method == delete => volumes::remove(&call, name),
        segments => absent::respond(call, &method, segments).await,
    }
}
