//! The HTTP side of a streaming connection: the request that asks for an upgrade, its response, and
//! the bare connection that is left afterwards (RFC 9110, section 7.8).

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONNECTION, HeaderName, UPGRADE},
};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes in both directions: TCP, or TLS over it.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub(crate) type Io = Box<dyn Duplex>;

/// 101 Switching Protocols.
pub(crate) fn switching(to: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

/// An error, with its reason as a line of text.
pub(crate) fn refuse(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

/// The words of a comma-separated header, which may also be repeated (RFC 9110, section 5.3).
pub(crate) fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The connection behind an HTTP request, once the response has been sent, and the bytes that the
/// client sent right after the request. `None` if the client left before that.
pub(crate) async fn upgraded(on_upgrade: OnUpgrade) -> Option<(Io, Bytes)> {
    // hyper knows the connection as a trait object; this is the type that it was given.
    match on_upgrade.await.map(hyper::upgrade::Upgraded::downcast::<TokioIo<Io>>) {
        Ok(Ok(parts)) => Some((parts.io.into_inner(), parts.read_buf)),
        // Every connection here is an `Io`.
        Ok(Err(_)) => None,
        Err(error) => {
            tracing::debug!("a streaming client left before its session began: {error}");
            None
        }
    }
}
