//! Bodies of requests, which are bounded, and of answers.

use std::{convert::Infallible, io};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Frame, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::error::{Failure, Result};

/// The longest JSON of a request, in bytes. Real ones have some kilobytes.
const MAX_JSON: usize = 4 << 20;

/// How much is read of a body that nobody wants, in bytes: an image in a tar, but not for ever.
const MAX_DISCARDED: usize = 256 << 20;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Answer = Response<Body>;

/// Reads the whole body of a request that carries JSON.
///
/// # Errors
/// 400 for one that is too long or breaks off.
pub(crate) async fn read(body: Incoming) -> Result<Bytes> {
    let collected = Limited::new(body, MAX_JSON).collect().await;
    let collected =
        collected.map_err(|error| Failure::bad_request(format!("read body: {error}")))?;
    Ok(collected.to_bytes())
}

/// Reads a body that nobody wants, so that its client comes to read the answer: most of them write
/// all of it first. One that is very long is cut off.
pub(crate) async fn discard(mut body: Incoming) {
    let mut left = MAX_DISCARDED;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

/// Refuses a body that does not say that it is JSON. An empty one may say nothing.
///
/// # Errors
/// 400 in dockerd's words.
pub(crate) fn check_json(request: &http::Request<Incoming>) -> Result<()> {
    let content_type = request.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    match media_type {
        "application/json" => Ok(()),
        "" if request.body().is_end_stream() => Ok(()),
        "" => Err(Failure::bad_request(format!(
            "malformed Content-Type header ({content_type}): mime: no media type"
        ))),
        _ => Err(Failure::bad_request(format!(
            "unsupported Content-Type header ({content_type}): must be 'application/json'"
        ))),
    }
}

/// Parses a body; an empty one has all its fields by default, as in Go.
///
/// # Errors
/// 400 for what does not parse.
pub(crate) async fn parse<T: DeserializeOwned + Default>(body: Incoming) -> Result<T> {
    let bytes = read(body).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| match error.is_eof() {
        true => Failure::bad_request("invalid JSON: unexpected EOF"),
        false => Failure::bad_request(format!("invalid JSON: {error}")),
    })
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

/// An answer with JSON, ended by a line feed as dockerd's are.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    answer(status, "application/json", full(bytes))
}

pub(crate) fn ok<T: Serialize>(value: &T) -> Answer {
    json(StatusCode::OK, value)
}

/// An answer without content, such as 204 and 304.
pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

pub(crate) fn text(status: StatusCode, text: &'static str) -> Answer {
    answer(status, "text/plain; charset=utf-8", full(text))
}

pub(crate) fn failed(failure: &Failure) -> Answer {
    match failure.is_plain {
        true => answer(
            failure.status,
            "text/plain; charset=utf-8",
            full(format!("{}\n", failure.message)),
        ),
        false => json(failure.status, &json!({ "message": failure.message })),
    }
}

/// A failure as an attach answers it: a line of text.
pub(crate) fn failed_raw(failure: &Failure) -> Answer {
    let text = format!("{}\r\n", failure.message);
    answer(failure.status, "application/vnd.docker.raw-stream", full(text))
}

/// A line of JSON, with the end that dockerd gives it.
pub(crate) fn line(line: &Value) -> String {
    format!("{line}\r\n")
}

/// An answer of lines of JSON, as they come.
pub(crate) fn lines(receiver: mpsc::Receiver<Value>) -> Answer {
    let lines = stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await?;
        Some((Ok::<_, io::Error>(Bytes::from(self::line(&line))), receiver))
    });
    streaming("application/json", lines)
}

/// An answer that goes on for as long as `stream` does. Its headers are sent at once.
pub(crate) fn streaming(
    content_type: &'static str,
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Answer {
    let body = StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync();
    answer(StatusCode::OK, content_type, body)
}
