//! What happens to containers and images, as `docker events` shows it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use berth_base::clock::now;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

/// How many events are kept for `since`.
const KEPT: usize = 256;
/// How far a listener may be behind.
const BEHIND: usize = 1024;

#[derive(Debug)]
pub(crate) struct Events {
    kept: Mutex<VecDeque<Value>>,
    sender: broadcast::Sender<Value>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Mutex::default(), sender: broadcast::Sender::new(BEHIND) }
    }
}

impl Events {
    /// Publishes an event of an object of `kind`.
    pub(crate) fn publish(
        &self,
        kind: &str,
        action: &str,
        id: &str,
        attributes: Map<String, Value>,
    ) {
        let at = now();
        let mut event = json!({
            "Type": kind,
            "Action": action,
            "Actor": { "ID": id, "Attributes": attributes },
            "scope": "local",
            "time": at / 1_000_000_000,
            "timeNano": at,
        });
        // The form of old clients, which know these two kinds only.
        if kind == "container" || kind == "image" {
            event["status"] = action.into();
            event["id"] = id.into();
        }
        if kind == "container" {
            event["from"] = event["Actor"]["Attributes"]["image"].clone();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.sender.send(event);
    }

    /// How many listen.
    pub(crate) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// What is kept, and what comes from now on; nothing is in both or missing between.
    pub(crate) fn listen(&self) -> (Vec<Value>, broadcast::Receiver<Value>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }
}
