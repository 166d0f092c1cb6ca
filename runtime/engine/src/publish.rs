//! Events of containers and of their networks, with the attributes that dockerd gives them.

use serde_json::{Map, Value, json};

use crate::{
    container::{mounts::Kind, object::Container},
    engine::Engine,
    volumes,
};

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

    /// Publishes that the volumes of a container are mounted in it.
    pub(crate) fn publish_mounts(&self, container: &Container) {
        let record = container.record();
        for mount in record.mounts.iter().filter(|mount| mount.kind == Kind::Volume) {
            let attributes = json!({
                "container": container.id,
                "destination": mount.destination,
                "propagation": mount.propagation,
                "read/write": mount.writable.to_string(),
            });
            let attributes = attributes.as_object().cloned().unwrap_or_default();
            self.publish_volume(&mount.name, "mount", attributes);
        }
    }

    /// Publishes that the volumes of a container are not mounted in it any more.
    pub(crate) fn publish_unmounts(&self, container: &Container) {
        for name in container.record().volumes() {
            let id = ("container".to_owned(), Value::from(container.id.clone()));
            self.publish_volume(name, "unmount", Map::from_iter([id]));
        }
    }

    /// Publishes what has happened to a volume.
    pub(crate) fn publish_volume(&self, name: &str, action: &str, more: Map<String, Value>) {
        let mut attributes = more;
        attributes.insert("driver".to_owned(), volumes::DRIVER.into());
        self.events.publish("volume", action, name, attributes);
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
