//! The streams that an exec or attach shares with its client, whichever transport the client
//! chose.

use std::io;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{packet::Packet, spdy::connection, websocket::socket};

/// Which standard streams a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// The form in which a client gets the status of its session, by the version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusFormat {
    /// Up to v3: text for a failure, nothing for success.
    Text,
    /// From v4 on: a `metav1.Status` as JSON.
    Json,
}

/// Ends when the client has no more to send, or is gone.
pub(crate) type Input = mpsc::Receiver<Bytes>;

/// A stream to the client.
pub(crate) enum Output {
    Spdy(connection::Sender),
    WebSocket(socket::Sender),
}

/// All streams of one client. Those that it did not ask for are absent.
pub(crate) struct Streams {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// Sizes of the client's terminal, as JSON.
    pub resize: Option<Input>,
    /// Tells how the session ended.
    pub error: Output,
    pub status_format: StatusFormat,
    /// Becomes true when the client is gone.
    pub gone: watch::Receiver<bool>,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Success,
    ExitCode(i32),
    /// It could not begin, or broke off; with the reason.
    Failed(String),
}

impl Output {
    /// Sends the payload of a packet. Waits until the client takes it, which is what slows down a
    /// process whose client does not read.
    ///
    /// # Errors
    /// The client is gone.
    pub(crate) async fn send(&self, packet: &mut Packet) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.send(packet).await,
            Self::WebSocket(sender) => sender.send(packet).await,
        }
    }

    /// Tells the client that nothing more comes on this stream.
    pub(crate) async fn finish(&self) {
        match self {
            // A frame without a payload, with the FIN flag.
            Self::Spdy(sender) => sender.finish().await,
            // WebSocket has no such message: all of its streams end with the connection.
            Self::WebSocket(_) => {}
        }
    }

    pub(crate) async fn send_text(&self, text: &str) -> io::Result<()> {
        self.send(&mut Packet::from(text.as_bytes())).await
    }
}

impl Streams {
    /// Tells the client how its session ended, behind all output.
    pub(crate) async fn end(self, outcome: &Outcome) {
        if *self.gone.borrow() {
            return;
        }
        // Clients wait for the end of their output before they look at the status.
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            output.finish().await;
        }
        let status = match self.status_format {
            StatusFormat::Text => outcome.text(),
            StatusFormat::Json => outcome.status(),
        };
        if !status.is_empty() {
            // It fails only for a client that has just left.
            let _ = self.error.send_text(&status).await;
        }
        self.error.finish().await;
    }
}

impl Outcome {
    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failed(reason) => reason.clone(),
        }
    }

    /// As `metav1.Status`, with the reason and the cause by which client-go knows an exit code
    /// (`k8s.io/client-go/tools/remotecommand`, errorDecoderV4).
    fn status(&self) -> String {
        let status = match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(reason) => json!({
                "metadata": {},
                "status": "Failure",
                "message": reason,
                "reason": "InternalError",
                "details": { "causes": [{ "message": reason }] },
                "code": 500,
            }),
        };
        status.to_string()
    }
}
