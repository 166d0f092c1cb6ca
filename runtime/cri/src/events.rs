//! GetContainerEvents (KEP 3386): each event comes with the status of its pod right after the
//! change.
//!
//! A client that reads too slowly delays nobody. Its stream ends with an error, so that it knows
//! that it has to list everything and listen again.

use std::sync::Arc;

use berth_base::{clock::MonotonicClock, observe::METRICS};
use berth_node::{
    Node,
    events::{Event, Kind},
};
use berth_proto::v1;
use futures_util::stream;
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::{Status, codegen::BoxStream};

use super::convert;

/// How many events a client may be behind.
const BACKLOG: usize = 1024;

/// Distributes events to all clients that listen.
#[derive(Clone, Debug)]
pub(super) struct Events {
    sender: broadcast::Sender<v1::ContainerEventResponse>,
}

impl Events {
    /// Passes on the node's events until the process ends.
    pub(super) fn start(node: Arc<Node>) -> Self {
        let sender = broadcast::Sender::new(BACKLOG);
        let events = Self { sender: sender.clone() };
        let Some(mut published) = node.events.receiver() else { return events };
        // Events of the recovery are old news to any client, because a client lists everything
        // before it listens.
        while published.try_recv().is_ok() {}
        tokio::spawn(async move {
            let mut clock = MonotonicClock::default();
            while let Some(event) = published.recv().await {
                // Without a listener, the statuses of the pod need not be made at all.
                if sender.receiver_count() > 0 {
                    // It fails if the last listener has left just now.
                    let _ = sender.send(response(&node, event, &mut clock));
                }
            }
        });
        events
    }

    /// The events from now on, until the client goes away or falls behind.
    pub(super) fn listen(&self) -> BoxStream<v1::ContainerEventResponse> {
        let next = async |receiver: Option<broadcast::Receiver<v1::ContainerEventResponse>>| {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), Some(receiver))),
                Err(RecvError::Lagged(missed)) => {
                    METRICS.cut_off.inc();
                    let message = format!(
                        "too slow: {missed} events were missed; list all pods and containers, and \
                         listen again"
                    );
                    Some((Err(Status::resource_exhausted(message)), None))
                }
                Err(RecvError::Closed) => None,
            }
        };
        Box::pin(stream::unfold(Some(self.sender.subscribe()), next))
    }
}

/// The message of an event: the status of the pod and of all its containers. Its time is later than
/// that of any event before, because the kubelet ignores a status that is older than the one that
/// it has.
fn response(node: &Node, event: Event, clock: &mut MonotonicClock) -> v1::ContainerEventResponse {
    let kind = match event.kind {
        Kind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => v1::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    let containers = node.containers_of(&event.sandbox.meta.id);
    v1::ContainerEventResponse {
        container_id: event.id,
        container_event_type: kind.into(),
        created_at: clock.tick(),
        pod_sandbox_status: Some(convert::sandbox_status(&event.sandbox)),
        containers_statuses: containers
            .iter()
            .map(|container| convert::container_status(container))
            .collect(),
    }
}
