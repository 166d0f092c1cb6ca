//! Events of containers and of their networks, with the attributes that dockerd gives them.

use serde_json::{Map, Value, json};

use crate::{container::object::Container, engine::Engine};

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

    /// Publishes what has happened to a command in a container. `action` is followed by the command.
    pub(crate) fn publish_command(
        &self,
        container: &Container,
        action: &str,
        exec: &str,
        command: &[String],
    ) {
        let action = format!("{action}: {} {}", command[0], command[1..].join(" "));
        self.publish(container, &action, json!({ "execID": exec }));
    }
}
