//! What a build tells its client: a line of JSON for each piece of text, as dockerd sends them.

use std::fmt::Display;

use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How many lines wait for a client. A step whose output nobody reads waits as well.
const WAITING: usize = 64;

/// The client's end is the receiver.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    lines: mpsc::Sender<Value>,
}

impl Output {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Value>) {
        let (lines, receiver) = mpsc::channel(WAITING);
        (Self { lines }, receiver)
    }

    /// Waits until nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.lines.closed().await;
    }

    /// Sends text. The client shows it as it is.
    pub(crate) async fn text(&self, text: impl Display) {
        self.line(json!({ "stream": text.to_string() })).await;
    }

    /// Sends text in red: the standard error of a step, and warnings.
    pub(crate) async fn error_text(&self, text: impl Display) {
        self.text(format!("\u{1b}[91m{text}\u{1b}[0m")).await;
    }

    /// Sends the id of a stage's image, for programs.
    pub(crate) async fn image(&self, id: &str) {
        self.line(json!({ "aux": { "ID": id } })).await;
    }

    /// Sends a line of any kind.
    pub(crate) async fn line(&self, line: Value) {
        // A client that is gone ends the build by its absence.
        let _ = self.lines.send(line).await;
    }

    /// For lines of another's making, such as the progress of a pull.
    pub(crate) fn lines(&self) -> &mpsc::Sender<Value> {
        &self.lines
    }
}
