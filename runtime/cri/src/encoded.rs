//! The items of ListContainers as encoded bytes. The kubelet lists all containers every second, and
//! hardly any of them has changed meanwhile. So each one is encoded once for each state that it is
//! in.

use std::{
    collections::HashMap,
    mem::{self, Discriminant},
    sync::{Arc, Mutex, PoisonError},
};

use berth_base::id::ContainerId;
use berth_node::container::{Container, State};
use bytes::Bytes;
use prost::Message;

use super::convert;

/// An encoded item, and the state that it was encoded in. Nothing else in an item ever changes.
type Encoded = (Discriminant<State>, Bytes);

/// Encoded items by container.
#[derive(Debug, Default)]
pub(super) struct EncodedItems {
    known: Mutex<HashMap<ContainerId, Encoded>>,
}

impl EncodedItems {
    /// The items of these containers, in their order.
    pub(super) fn encode(&self, containers: &[Arc<Container>]) -> Vec<Bytes> {
        // Held for the whole list: encoding takes microseconds, and nothing here waits.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > 2 * containers.len() + 64 {
            // Most of what is kept belongs to containers that were removed. After a filtered list
            // it does not; then the others are merely encoded once more.
            known.clear();
        }
        let mut items = Vec::with_capacity(containers.len());
        for container in containers {
            let shown = mem::discriminant(&container.state());
            let bytes = match known.get(&container.meta.id) {
                Some((state, bytes)) if *state == shown => bytes.clone(),
                _ => {
                    let bytes = Bytes::from(convert::container_item(container).encode_to_vec());
                    known.insert(container.meta.id.clone(), (shown, bytes.clone()));
                    bytes
                }
            };
            items.push(bytes);
        }
        items
    }
}
