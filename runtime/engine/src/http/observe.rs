//! What surrounds every request: it is counted, timed, and a span in the caller's trace.

use std::time::Instant;

use berth_base::observe::{HttpRequest, METRICS, RequestSpans, TARGET};
use http::{Method, Request, StatusCode};
use tracing::field::Empty;

/// The first segments of the paths that there are.
const OBJECTS: [&str; 21] = [
    "_ping",
    "auth",
    "build",
    "commit",
    "configs",
    "containers",
    "distribution",
    "events",
    "exec",
    "images",
    "info",
    "networks",
    "nodes",
    "plugins",
    "secrets",
    "services",
    "swarm",
    "system",
    "tasks",
    "version",
    "volumes",
];
/// What may stand at the end of a path.
const VERBS: [&str; 34] = [
    "archive",
    "attach",
    "changes",
    "connect",
    "create",
    "df",
    "disconnect",
    "exec",
    "export",
    "get",
    "history",
    "json",
    "kill",
    "load",
    "logs",
    "pause",
    "prune",
    "push",
    "rename",
    "resize",
    "restart",
    "search",
    "start",
    "stats",
    "stop",
    "tag",
    "top",
    "unpause",
    "update",
    "wait",
    "ws",
    "init",
    "join",
    "leave",
];

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Observed {
    begun: Instant,
    request: HttpRequest,
    spans: RequestSpans,
}

impl Observed {
    pub(crate) fn begin<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let request = HttpRequest {
            method: method_name(request.method()),
            route: route(request.uri().path()),
        };
        let HttpRequest { method, route } = &request;
        let trace = tracing::info_span!(
            target: TARGET,
            "request",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            otel.status_code = Empty,
            http.request.method = method,
            http.route = route,
            http.response.status_code = Empty,
        );
        let log = tracing::info_span!("request", method, route, trace_id = Empty);
        let spans = RequestSpans::new(trace, log, headers);
        Self { begun: Instant::now(), request, spans }
    }

    /// Runs `work` inside of the request's spans.
    pub(crate) fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.spans.around(work)
    }

    /// Counts the request, which has been answered with this status.
    pub(crate) fn end(self, status: StatusCode) {
        let code = status.as_u16();
        self.spans.end("http.response.status_code", code.into(), status.is_server_error());
        METRICS.engine_request(self.request, code, self.begun.elapsed());
    }
}

/// The path with `{name}` for what the client chose, who could otherwise make up any number of time
/// series.
fn route(path: &str) -> String {
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    let is_version = |text: &str| text.starts_with("v1.");
    if segments.first().is_some_and(|first| is_version(first)) {
        segments.remove(0);
    }
    let verb = |text: &str| VERBS.contains(&text).then(|| text.to_owned());
    let Some((first, rest)) = segments.split_first().filter(|(first, _)| OBJECTS.contains(first))
    else {
        return "unknown".to_owned();
    };
    match rest {
        [] => format!("/{first}"),
        [only] => format!("/{first}/{}", verb(only).unwrap_or_else(|| "{name}".to_owned())),
        [.., last] => match verb(last) {
            Some(verb) => format!("/{first}/{{name}}/{verb}"),
            None => format!("/{first}/{{name}}"),
        },
    }
}

fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE"];
    known.into_iter().find(|name| *name == method.as_str()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_no_names_of_clients() {
        for (path, expected) in [
            ("v1.51/containers/json", "/containers/json"),
            ("containers/web/json", "/containers/{name}/json"),
            ("containers/web", "/containers/{name}"),
            ("containers/web/attach/ws", "/containers/{name}/ws"),
            ("images/a/b/c/json", "/images/{name}/json"),
            ("images/a/b", "/images/{name}"),
            ("_ping", "/_ping"),
            ("nope/x", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(route(&format!("/{path}")), expected);
        }
        assert_eq!(method_name(&Method::from_bytes(b"ODD").unwrap()), "unknown");
    }
}
