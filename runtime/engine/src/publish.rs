//! Events of containers and of their networks, with the attributes that dockerd gives them.

use serde_json::{Map, Value, json};

use crate::{
    container::{mounts::Kind, object::Container},
    engine::Engine,
    network::{Network, endpoints},
    volumes,
};

impl Engine {
    /// Publishes that a container's networks were connected to it, or disconnected from it.
    pub(crate) fn publish_networks(&self, container: &Container, action: &str) {
        for wanted in endpoints::wanted(&container.record()) {
            if let Ok(network) = self.networks.find(&wanted.name) {
                self.publish_endpoint(container, &network, action);
            }
        }
    }

    /// Publishes that a network was connected to a container, or disconnected from it.
    pub(crate) fn publish_endpoint(&self, container: &Container, network: &Network, action: &str) {
        let id = ("container".to_owned(), Value::from(container.id.clone()));
        self.publish_of_network(network, action, Map::from_iter([id]));
    }

    /// Publishes what has happened to a network.
    pub(crate) fn publish_of_network(
        &self,
        network: &Network,
        action: &str,
        more: Map<String, Value>,
    ) {
        let mut attributes = more;
        attributes.insert("name".to_owned(), network.name.clone().into());
        attributes.insert("type".to_owned(), network.driver.to_string().into());
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
