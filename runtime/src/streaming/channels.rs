//! What an exec or attach has with its client, whichever way the client came.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{
    connection::{self, Connection},
    spdy::HEADER,
    websocket,
};

/// For all streams to be opened.
const OPENING: Duration = Duration::from_secs(30);

/// Which standard streams a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// How the end of a process is told, by the version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Up to v3: words, and nothing for success.
    Text,
    /// From v4 on: a Kubernetes Status as JSON.
    Status,
}

pub(crate) type Input = mpsc::Receiver<Bytes>;

pub(crate) enum Output {
    Spdy(connection::Sender),
    WebSocket(websocket::Sender),
}

pub(crate) struct Channels {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub resize: Option<Input>,
    pub error: Output,
    pub ending: Ending,
    /// Becomes true when the client is gone.
    pub gone: watch::Receiver<bool>,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Success,
    ExitCode(i32),
    /// It could not be.
    Failed(String),
}

impl Output {
    /// Sends what is in `buffer` behind its first `HEADER` bytes, and waits for the client to take it.
    ///
    /// # Errors
    /// The client is gone.
    pub(crate) async fn send(&self, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.send(buffer).await,
            Self::WebSocket(sender) => sender.send(buffer).await,
        }
    }

    /// No more comes.
    pub(crate) async fn finish(&self) {
        match self {
            Self::Spdy(sender) => sender.finish().await,
            Self::WebSocket(sender) => sender.finish().await,
        }
    }

    pub(crate) async fn send_text(&self, text: &str) -> io::Result<()> {
        self.send(&mut [&[0; HEADER], text.as_bytes()].concat()).await
    }
}

impl Channels {
    /// Waits until a SPDY client has opened all that it asked for, in whatever order.
    ///
    /// # Errors
    /// It did not, or opened something else.
    pub(crate) async fn of_spdy(
        connection: &mut Connection,
        wanted: Wanted,
        ending: Ending,
        resizes: bool,
    ) -> Result<Self, String> {
        let mut kinds = vec!["error"];
        let optional = [
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.stderr),
            ("resize", wanted.tty && resizes),
        ];
        kinds.extend(optional.iter().filter(|(_, is_wanted)| *is_wanted).map(|(kind, _)| *kind));
        let gone = connection.gone();
        let opening = async {
            let mut streams = BTreeMap::new();
            while streams.len() < kinds.len() {
                let Some(stream) = connection.accept().await else { return Err("the client left".to_owned()) };
                let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
                let Some(kind) = kinds.iter().find(|known| **known == kind) else {
                    return Err(format!("a stream of type {kind:?} was not asked for"));
                };
                if streams.insert(*kind, stream).is_some() {
                    return Err(format!("two streams of type {kind}"));
                }
            }
            Ok(streams)
        };
        let mut streams = tokio::time::timeout(OPENING, opening)
            .await
            .map_err(|_| "not all streams were opened in time".to_owned())??;
        let error = streams.remove("error").ok_or("no error stream")?;
        let mut output = |kind: &str| streams.remove(kind).map(|stream| Output::Spdy(stream.output));
        let (stdout, stderr) = (output("stdout"), output("stderr"));
        let mut input = |kind: &str| streams.remove(kind).map(|stream| stream.input);
        let (stdin, resize) = (input("stdin"), input("resize"));
        Ok(Self { stdin, stdout, stderr, resize, error: Output::Spdy(error.output), ending, gone })
    }

    /// Tells how it ended, after all output.
    pub(crate) async fn end(self, outcome: &Outcome) {
        if *self.gone.borrow() {
            return;
        }
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            output.finish().await;
        }
        let text = match self.ending {
            Ending::Text => outcome.text(),
            Ending::Status => outcome.status(),
        };
        if !text.is_empty() {
            // A client that left knows by itself.
            let _ = self.error.send_text(&text).await;
        }
        self.error.finish().await;
    }
}

impl Outcome {
    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failed(reason) => reason.clone(),
        }
    }

    /// As `metav1.Status`.
    fn status(&self) -> String {
        let status = match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::ExitCode(code) => json!({
                "metadata": {}, "status": "Failure", "message": self.text(), "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(reason) => json!({
                "metadata": {}, "status": "Failure", "message": reason, "reason": "InternalError", "code": 500,
                "details": { "causes": [{ "message": reason }] },
            }),
        };
        status.to_string()
    }
}
