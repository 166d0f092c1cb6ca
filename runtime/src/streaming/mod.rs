//! Exec, Attach and PortForward: CRI answers a URL, and whoever opens it has the streams.
//!
//! A URL is good for one connection within a minute. The connection is upgraded to SPDY/3.1, or to WebSocket, and then belongs to a
//! task of its own that ends with it.

mod channels;
mod connection;
mod descriptor;
mod portforward;
mod session;
mod spdy;
mod tls;
mod websocket;

#[cfg(fuzzing)]
pub use self::spdy::fuzz as fuzz_spdy;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, HeaderName, UPGRADE},
};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

pub(crate) use self::channels::Wanted;
use self::{
    channels::{Channels, Ending},
    connection::{Connection, Io},
    tls::Tls,
};
use crate::{
    config,
    container::Container,
    error::{Error, Kind, Result},
    id,
    machine::Machine,
    telemetry::METRICS,
};

/// Of a URL that nobody opens.
const LIFE: Duration = Duration::from_secs(60);
const MAX_PENDING: usize = 1000;
/// For a request to come.
const PATIENCE: Duration = Duration::from_secs(30);
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Newest first.
const EXEC_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// What a URL stands for.
#[derive(Debug)]
pub(crate) enum Session {
    Exec {
        container: Arc<Container>,
        command: Vec<String>,
        wanted: Wanted,
    },
    Attach {
        container: Arc<Container>,
        wanted: Wanted,
    },
    /// `netns` of the pod; `None` for the host's. SPDY names its ports later.
    PortForward {
        netns: Option<PathBuf>,
        ports: Vec<u16>,
    },
}

/// Serves sessions, each once.
#[derive(Debug)]
pub(crate) struct Streaming {
    machine: Arc<Machine>,
    /// Without a slash at its end.
    base: String,
    pending: Mutex<HashMap<String, (Session, Instant)>>,
}

impl Streaming {
    /// Listens, and serves until the process ends.
    ///
    /// # Errors
    /// The address is in use, or not one of this machine; files of TLS that cannot be used.
    pub(crate) async fn start(machine: Arc<Machine>, config: &config::Streaming) -> anyhow::Result<Arc<Self>> {
        let during = || format!("streaming.address {}", config.address);
        let listener = TcpListener::bind(config.address).await.with_context(during)?;
        let tls = config.tls.as_ref().map(|tls| Tls::new(&tls.cert, &tls.key)).transpose()?.map(Arc::new);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", listener.local_addr().with_context(during)?);
        let streaming = Arc::new(Self { machine, base, pending: Mutex::default() });
        tokio::spawn(streaming.clone().accept(listener, tls));
        Ok(streaming)
    }

    /// The URL for a session.
    ///
    /// # Errors
    /// `ResourceExhausted`: too many that nobody opened.
    pub(crate) fn offer(&self, session: Session) -> Result<String> {
        let mut pending = self.pending();
        pending.retain(|_, (_, since)| since.elapsed() < LIFE);
        if pending.len() >= MAX_PENDING {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("{MAX_PENDING} streaming requests were not opened yet"),
            ));
        }
        let token = id::random_hex(16);
        let url = format!("{}/{}/{token}", self.base, session.verb());
        pending.insert(token, (session, Instant::now()));
        Ok(url)
    }

    pub(crate) fn pending_urls(&self) -> usize {
        self.pending().len()
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, (Session, Instant)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, tls: Option<Arc<Tls>>) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Of descriptors there may be more in a moment.
                    tracing::warn!("accept a streaming client: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let (streaming, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                let io: Io = match tls {
                    None => Box::new(stream),
                    Some(tls) => match tokio::time::timeout(PATIENCE, tls.acceptor().accept(stream)).await {
                        Ok(Ok(stream)) => Box::new(stream),
                        Ok(Err(error)) => return tracing::debug!("a streaming client: {error}"),
                        Err(_) => return,
                    },
                };
                streaming.serve(io).await;
            });
        }
    }

    /// One request; what becomes of its connection is the business of `answer`.
    async fn serve(self: Arc<Self>, io: Io) {
        let service = service_fn(|request| {
            let answer = self.answer(request);
            async { Ok::<_, std::convert::Infallible>(answer) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        if let Err(error) = serving.await {
            tracing::debug!("a streaming client: {error}");
        }
    }

    /// The answer to a request, and where it is an upgrade, the session in a task of its own.
    fn answer(self: &Arc<Self>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let refuse = |status, words: &str| {
            let mut response = Response::new(Full::new(Bytes::from(format!("{words}\n"))));
            *response.status_mut() = status;
            response
        };
        if request.method() != Method::GET && request.method() != Method::POST {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
        }
        let (verb, token) = match request.uri().path().split('/').collect::<Vec<_>>()[..] {
            ["", verb, token] => (verb.to_owned(), token.to_owned()),
            _ => return refuse(StatusCode::NOT_FOUND, "no such session"),
        };
        let headers = request.headers();
        let upgrade =
            headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let is_upgrade = words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade"));
        if !is_upgrade || !["spdy/3.1", "websocket"].contains(&upgrade.as_str()) {
            return refuse(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is wanted");
        }
        let session = {
            let mut pending = self.pending();
            pending.retain(|_, (_, since)| since.elapsed() < LIFE);
            match pending.remove(&token) {
                Some((session, _)) if session.verb() == verb => session,
                _ => return refuse(StatusCode::NOT_FOUND, "no such session: it was opened before, or too late"),
            }
        };
        let open = METRICS.session();
        if upgrade == "websocket" {
            return websocket::answer(self.machine.clone(), session, open, request);
        }
        let offered = words(headers, &STREAM_PROTOCOL);
        let known: &[&str] =
            if matches!(session, Session::PortForward { .. }) { &[FORWARD_PROTOCOL] } else { &EXEC_PROTOCOLS };
        let Some(protocol) = known.iter().find(|known| offered.iter().any(|one| one == *known)) else {
            if offered.is_empty() {
                return refuse(StatusCode::BAD_REQUEST, "X-Stream-Protocol-Version is missing");
            }
            let mut response = refuse(StatusCode::FORBIDDEN, "no protocol of X-Stream-Protocol-Version is known");
            for known in known {
                response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(known));
            }
            return response;
        };
        let on_upgrade = hyper::upgrade::on(&mut request);
        let serving = serve_spdy(self.machine.clone(), session, protocol, on_upgrade);
        tokio::spawn(async move {
            let _open = open;
            serving.await;
        });
        let mut response = switching("SPDY/3.1");
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        response
    }
}

impl Session {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }

    fn wanted(&self) -> Option<Wanted> {
        match self {
            Self::Exec { wanted, .. } | Self::Attach { wanted, .. } => Some(*wanted),
            Self::PortForward { .. } => None,
        }
    }

    /// Until it ends.
    async fn run(self, machine: &Machine, channels: Channels) {
        match self {
            Self::Exec { container, command, wanted } => {
                session::exec(machine, &container, command, wanted.tty, channels).await;
            }
            Self::Attach { container, wanted } => session::attach(&container, wanted, channels).await,
            Self::PortForward { .. } => {}
        }
    }
}

fn switching(to: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

/// Words of a header, which may come several times and have commas.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The connection behind an HTTP request, and what came behind that.
async fn upgraded(on_upgrade: OnUpgrade) -> Option<(Io, Bytes)> {
    match on_upgrade.await.map(hyper::upgrade::Upgraded::downcast::<TokioIo<Io>>) {
        Ok(Ok(parts)) => Some((parts.io.into_inner(), parts.read_buf)),
        Ok(Err(_)) => None,
        Err(error) => {
            tracing::debug!("a streaming client left: {error}");
            None
        }
    }
}

async fn serve_spdy(machine: Arc<Machine>, session: Session, protocol: &'static str, on_upgrade: OnUpgrade) {
    let Some((io, early)) = upgraded(on_upgrade).await else { return };
    let mut connection = Connection::new(io, early);
    let Some(wanted) = session.wanted() else {
        if let Session::PortForward { netns, .. } = session {
            portforward::serve(connection, netns).await;
        }
        return;
    };
    let ending = if protocol == EXEC_PROTOCOLS[0] { Ending::Status } else { Ending::Text };
    let resizes = EXEC_PROTOCOLS[..2].contains(&protocol);
    let opened = Channels::of_spdy(&mut connection, wanted, ending, resizes).await;
    connection.accept_no_more().await;
    match opened {
        Ok(channels) => session.run(&machine, channels).await,
        Err(reason) => tracing::info!("a streaming client is sent away: {reason}"),
    }
    connection.close().await;
}
