//! GetContainerEvents (KEP 3386): each change with its pod as it is right after.
//!
//! A listener who reads too slowly holds nothing up: he is cut off, and so knows that he has to list and to listen anew.

use std::sync::Arc;

use berth_proto::v1;
use futures_util::stream;
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::{Status, codegen::BoxStream};

use super::convert;
use crate::{
    clock::Rising,
    container::Container,
    events::{Change, Kind},
    node::Node,
    telemetry::METRICS,
};

/// How far behind a listener may be.
const BACKLOG: usize = 1024;

#[derive(Clone, Debug)]
pub(super) struct Events {
    sender: broadcast::Sender<v1::ContainerEventResponse>,
}

impl Events {
    /// Passes on what the node tells, until the process ends.
    pub(super) fn start(node: Arc<Node>) -> Self {
        let sender = broadcast::Sender::new(BACKLOG);
        let events = Self { sender: sender.clone() };
        let Some(mut changes) = node.machine.changes.receiver() else { return events };
        // What recovery found is no news: whoever comes lists first.
        while changes.try_recv().is_ok() {}
        tokio::spawn(async move {
            let mut clock = Rising::default();
            while let Some(change) = changes.recv().await {
                let gone = change.clone();
                if sender.receiver_count() > 0
                    && let Some(event) = event(&node, change, &mut clock)
                {
                    // Fails when the last listener has just left.
                    let _ = sender.send(event);
                }
                node.forget(&gone);
            }
        });
        events
    }

    /// From now on, until the listener goes away or falls behind.
    pub(super) fn listen(&self) -> BoxStream<v1::ContainerEventResponse> {
        let next = async |receiver: Option<broadcast::Receiver<v1::ContainerEventResponse>>| {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), Some(receiver))),
                Err(RecvError::Lagged(missed)) => {
                    METRICS.cut_off.inc();
                    let words = format!("{missed} events behind: list pods and containers, and listen again");
                    Some((Err(Status::resource_exhausted(words)), None))
                }
                Err(RecvError::Closed) => None,
            }
        };
        Box::pin(stream::unfold(Some(self.sender.subscribe()), next))
    }
}

/// The event of a change: its pod, all of the pod's containers, and a time that is later than that of any event before.
fn event(node: &Node, change: Change, clock: &mut Rising) -> Option<v1::ContainerEventResponse> {
    let sandbox = node.sandbox_of(&change)?;
    let status = |container: &Arc<Container>| convert::container_status(container, container.user(&node.machine));
    let kind = match change.kind {
        Kind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => v1::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    Some(v1::ContainerEventResponse {
        container_id: change.id,
        container_event_type: kind.into(),
        created_at: clock.next(),
        pod_sandbox_status: Some(convert::sandbox_status(&sandbox)),
        containers_statuses: node.containers_of(&sandbox.meta.id).iter().map(status).collect(),
    })
}
