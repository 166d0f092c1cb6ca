//! Connections that stop being HTTP: attach and exec (`Upgrade: tcp`).

use http::{
    HeaderValue, Request, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, UPGRADE},
};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;

use super::body::{self, Answer};

/// The two directions of a client's connection. The end of the first is a half-close: the client
/// still reads.
pub(crate) type Io = TokioIo<Upgraded>;

/// How output is framed, which the answer's content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A terminal's bytes as they are.
    Raw,
    /// Each chunk behind a header with its stream and length.
    Multiplexed,
}

impl Framing {
    pub(crate) fn of(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Multiplexed }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Raw => "application/vnd.docker.raw-stream",
            Self::Multiplexed => "application/vnd.docker.multiplexed-stream",
        }
    }
}

/// Whether the client asks for the connection itself.
pub(crate) fn is_wanted(request: &Request<Incoming>) -> bool {
    request.headers().contains_key(UPGRADE)
}

/// The upgrade of a request whose body has been read, or has none.
pub(crate) fn on(request: Request<Incoming>) -> OnUpgrade {
    hyper::upgrade::on(request)
}

/// The answer after which the connection is the session's.
pub(crate) fn switching(framing: Framing) -> Answer {
    let mut answer = body::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(framing.content_type()));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    answer
}
