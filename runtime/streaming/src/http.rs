//! The streaming server: accepts connections, finds the session of a URL, and hands the connection
//! to SPDY or WebSocket.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use berth_base::{accept::Acceptor, config, error::Result, observe::METRICS};
use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::{
    session::Session,
    spdy,
    tls::Tls,
    upgrade::{Io, refuse, words},
    urls::Urls,
    websocket,
};

/// How long a client may take for a TLS handshake, and again for the headers of its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// hyper's buffer for a request's headers.
const MAX_REQUEST: usize = 64 << 10;

/// Serves sessions, each of them once.
#[derive(Debug)]
pub struct Streaming {
    urls: Urls,
}

/// The protocols that a request may ask for.
enum Protocol {
    Spdy,
    WebSocket,
}

impl Streaming {
    /// Listens, and serves in tasks until the process ends.
    ///
    /// # Errors
    /// The address is in use or not one of this machine, or the TLS files cannot be used.
    pub async fn start(config: &config::Streaming) -> anyhow::Result<Arc<Self>> {
        let step = format!("listen on streaming.address {}", config.address);
        // Both now: what is wrong with the address or the certificate ends the daemon's start, and
        // not the first exec.
        let listener = TcpListener::bind(config.address).await.context(step.clone())?;
        let tls = match &config.tls {
            Some(files) => Some(Arc::new(Tls::new(&files.cert, &files.key)?)),
            None => None,
        };
        // The port of the configuration may be 0, which stands for any free one.
        let address = listener.local_addr().context(step)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let streaming = Arc::new(Self { urls: Urls::new(format!("{scheme}://{address}")) });
        tokio::spawn(streaming.clone().accept(listener, tls));
        Ok(streaming)
    }

    /// The URL for a session.
    ///
    /// # Errors
    /// `ResourceExhausted`: too many URLs that nobody has opened.
    pub fn offer(&self, session: Session) -> Result<String> {
        self.urls.offer(session)
    }

    pub fn pending_urls(&self) -> usize {
        self.urls.count()
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, tls: Option<Arc<Tls>>) {
        // It survives what accept(2) reports about single clients.
        let mut listener = Acceptor::new(listener);
        loop {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => return tracing::error!("streaming ends: accept: {error}"),
            };
            // A key press is a packet of its own: Nagle's algorithm would hold it back until the
            // previous one is acknowledged.
            let _ = stream.set_nodelay(true);
            let streaming = self.clone();
            let tls = tls.clone();
            // The handshake too is in the task: a client that is slow at it delays no other.
            tokio::spawn(async move {
                if let Some(io) = handshake(stream, tls).await {
                    streaming.serve(io).await;
                }
            });
        }
    }

    /// Answers the request of one connection, which `with_upgrades` then leaves to its session.
    async fn serve(self: Arc<Self>, io: Io) {
        let service = service_fn(|request| {
            let response = self.respond(request);
            async { Ok::<_, std::convert::Infallible>(response) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT)
            .max_buf_size(MAX_REQUEST)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        if let Err(error) = serving.await {
            tracing::debug!("a streaming client: {error}");
        }
    }

    /// The response to a request, and for an upgrade, its session in a task of its own.
    fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        // kubectl and crictl use POST for SPDY; WebSocket clients have to use GET (RFC 6455).
        if request.method() != Method::GET && request.method() != Method::POST {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
        }
        let ["", verb, token] = request.uri().path().split('/').collect::<Vec<_>>()[..] else {
            return refuse(StatusCode::NOT_FOUND, "no such session");
        };
        // Asked before the session is taken: a request that cannot be served does not use up its
        // URL.
        let Some(protocol) = protocol(request.headers()) else {
            let wanted = "an upgrade to SPDY/3.1 or websocket is wanted";
            return refuse(StatusCode::BAD_REQUEST, wanted);
        };
        let Some(session) = self.urls.take(verb, token) else {
            let why = "no such session: it was opened before, or too late";
            return refuse(StatusCode::NOT_FOUND, why);
        };
        // Counted until the session drops this, or the negotiation fails.
        let counted = METRICS.session();
        match protocol {
            Protocol::Spdy => spdy::respond(session, counted, request),
            Protocol::WebSocket => websocket::respond(session, counted, request),
        }
    }
}

/// The connection of a client, after its TLS handshake where TLS is configured.
async fn handshake(stream: TcpStream, tls: Option<Arc<Tls>>) -> Option<Io> {
    let Some(tls) = tls else { return Some(Box::new(stream)) };
    match tokio::time::timeout(REQUEST_TIMEOUT, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!("TLS handshake of a streaming client: {error}");
            None
        }
        // It took too long, and is disconnected.
        Err(_) => None,
    }
}

/// The protocol of an upgrade request; `None` if it asks for no upgrade or for another protocol.
fn protocol(headers: &HeaderMap) -> Option<Protocol> {
    words(headers, &CONNECTION).iter().find(|word| word.eq_ignore_ascii_case("upgrade"))?;
    match headers.get(UPGRADE)?.to_str().ok()?.to_ascii_lowercase().as_str() {
        "spdy/3.1" => Some(Protocol::Spdy),
        "websocket" => Some(Protocol::WebSocket),
        _ => None,
    }
}
