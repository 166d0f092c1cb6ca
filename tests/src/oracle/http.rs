//! HTTP/1.1 over a unix socket, with nothing hidden: what is sent may be wrong, and a connection
//! that becomes a raw one is read until it ends.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout_at},
};

use super::scenario::Input;

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) content_type: String,
    pub(super) body: Option<Vec<u8>>,
    pub(super) upgrade: bool,
    pub(super) input: Option<Input>,
}

#[derive(Debug, Default)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Names in lower case, and values.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether it had ended when the time was up.
    pub(super) ended: bool,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// How long an answer may take. Those that never end, as a followed log, are cut off by it.
const PATIENCE: Duration = Duration::from_secs(4);
/// As `PATIENCE`, until the head is there: dockerd looks for a plugin for 15 seconds.
const FIRST: Duration = Duration::from_secs(30);

/// Sends a request and reads its answer; `answered` becomes true when its head has arrived.
pub(super) async fn send(
    socket: &Path,
    request: &Request,
    answered: Arc<AtomicBool>,
) -> Result<Response> {
    let mut stream = UnixStream::connect(socket).await.context("connect")?;
    stream.write_all(&encode(request)).await.context("send")?;
    let mut read = Vec::new();
    let begun = Instant::now();
    let end_of_head = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if !more(&mut stream, &mut read, begun + FIRST).await? {
            anyhow::bail!("no answer, only {:?}", String::from_utf8_lossy(&read));
        }
    };
    answered.store(true, Ordering::Relaxed);
    let mut response = head(&String::from_utf8_lossy(&read[..end_of_head]));
    let mut body = read.split_off(end_of_head + 4);
    let is_raw = response.status == 101 || request.upgrade && response.status == 200;
    if let Some(input) = request.input.as_ref().filter(|_| is_raw) {
        // A daemon may have ended the connection already, and that is no mistake of this side.
        let _ = stream.write_all(&input.bytes).await;
        if input.half_close {
            let _ = stream.shutdown().await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while !is_complete(request, &response, &body) {
        if !more(&mut stream, &mut body, deadline).await? {
            break;
        }
    }
    response.ended = is_complete(request, &response, &body) || Instant::now() < deadline;
    if response.header("transfer-encoding") == Some("chunked") {
        body = unchunked(&body);
    }
    response.body = body;
    Ok(response)
}

fn encode(request: &Request) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.1\r\nHost: docker\r\n", request.method, request.path);
    if request.upgrade {
        text += "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    }
    let body = request.body.as_deref().unwrap_or_default();
    if request.body.is_some() && !request.content_type.is_empty() {
        text += &format!("Content-Type: {}\r\n", request.content_type);
    }
    if request.body.is_some() || request.method == "POST" {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut bytes = (text + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Whether there was more before the deadline.
async fn more(stream: &mut UnixStream, read: &mut Vec<u8>, deadline: Instant) -> Result<bool> {
    match timeout_at(deadline, stream.read_buf(read)).await {
        Ok(Ok(count)) => Ok(count > 0),
        // How a connection was ended after an answer makes no difference to a client.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(false),
        Ok(Err(error)) => Err(error).context("read"),
        Err(_) => Ok(false),
    }
}

fn head(text: &str) -> Response {
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Response { status: status.parse().unwrap_or(0), headers, ..Response::default() }
}

fn is_complete(request: &Request, response: &Response, body: &[u8]) -> bool {
    let length = || response.header("content-length").and_then(|length| length.parse().ok());
    if request.method == "HEAD" || [204, 304].contains(&response.status) {
        true
    } else if response.header("transfer-encoding") == Some("chunked") {
        body.ends_with(b"0\r\n\r\n")
    } else {
        length().is_some_and(|length: usize| body.len() >= length)
    }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = String::from_utf8_lossy(&body[..end]).into_owned();
        let size = usize::from_str_radix(&size, 16).unwrap_or(0);
        let chunk = &body[end + 2..];
        let size = size.min(chunk.len());
        if size == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..size]);
        body = chunk.get(size + 2..).unwrap_or_default();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_even_when_the_last_is_cut_off() {
        assert_eq!(unchunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), b"abcde");
        assert_eq!(unchunked(b"3\r\nabc\r\n9\r\nde"), b"abcde");
    }

    #[test]
    fn heads_are_parsed() {
        let response = head("HTTP/1.1 101 UPGRADED\r\nContent-Type: a/b\r\nUpgrade: tcp");
        assert_eq!(response.status, 101);
        assert_eq!(response.header("content-type"), Some("a/b"));
    }
}
