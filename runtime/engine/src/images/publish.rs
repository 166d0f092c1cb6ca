//! Events of images, with the attributes that dockerd gives them.

use berth_image::Image;
use serde_json::{Map, Value};

use crate::{container::merge::of_image, engine::Engine};

impl Engine {
    /// Publishes an event of an image that is here, with its labels and `name`.
    pub(crate) fn publish_image(&self, image: &Image, action: &str, name: &str) {
        self.publish_image_as(image, action, image.id.as_str(), name);
    }

    /// As `publish_image`, of an actor that is known by another id than the image's.
    pub(crate) fn publish_image_as(&self, image: &Image, action: &str, id: &str, name: &str) {
        let document = self.node.host.images.config_document(image).unwrap_or_default();
        let labels = of_image(&document).labels.into_iter().flatten();
        let mut attributes: Map<String, Value> =
            labels.map(|(key, value)| (key, value.into())).collect();
        attributes.insert("name".into(), name.into());
        self.events.publish("image", action, id, attributes);
    }

    /// Publishes that an image is gone, whose labels nobody knows any more.
    pub(crate) fn publish_removed_image(&self, image: &Image) {
        let id = image.id.as_str();
        let attributes = Map::from_iter([("name".to_owned(), Value::from(id))]);
        self.events.publish("image", "delete", id, attributes);
    }
}
