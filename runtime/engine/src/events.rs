//! What happens to containers, as `docker events` shows it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use berth_base::clock::now;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use crate::{container::object::Container, engine::Engine};

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
        if kind == "container" {
            event["status"] = action.into();
            event["id"] = id.into();
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

impl Engine {
    /// Publishes that a container's network was connected to it, or disconnected from it.
    pub(crate) fn publish_network(&self, container: &Container, action: &str) {
        let record = container.record();
        let network = self.networks.of_mode(&record.host_config.network_mode);
        let Ok(Some(network)) = network else { return };
        let attributes = [
            ("container", container.id.clone()),
            ("name", network.name.clone()),
            ("type", network.driver.to_string()),
        ];
        let attributes = attributes
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .into_iter()
            .collect();
        self.events.publish("network", action, &network.id, attributes);
    }

    /// Publishes an event of a container, with its labels, image and name.
    pub(crate) fn publish(&self, container: &Container, action: &str, more: Value) {
        let record = container.record();
        let mut attributes = Map::new();
        for (key, value) in record.config.labels.iter().flatten() {
            attributes.insert(key.clone(), value.clone().into());
        }
        if let Value::Object(more) = more {
            attributes.extend(more);
        }
        attributes.insert("image".into(), record.config.image.clone().into());
        attributes.insert("name".into(), record.name.clone().into());
        self.events.publish("container", action, &container.id, attributes);
    }
}
