//! Events of pods and containers. Whoever changes a state publishes the event, after the new state
//! can be read.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::sandbox::Sandbox;

/// CRI's `ContainerEventType`, in the order of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Something that happened to a container or to a sandbox.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    /// Its pod. The event carries it, because the node may have forgotten the pod by the time that
    /// the event is read.
    pub sandbox: Arc<Sandbox>,
    /// The container's id, or the sandbox's.
    pub id: String,
}

/// The queue of events. There is one for all pods, so that they come out in the order in which they
/// happened.
///
/// It is unbounded, because nobody who changes a state may wait for a reader; the only reader never
/// waits for a client.
#[derive(Debug)]
pub struct Events {
    sender: UnboundedSender<Event>,
    receiver: Mutex<Option<UnboundedReceiver<Event>>>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }

    /// The end of the queue into which a pod's events go.
    pub fn pod(&self, sandbox: Arc<Sandbox>) -> Pod {
        Pod { sandbox, sender: self.sender.clone() }
    }

    /// Drops the events of this node, those to come as well: nobody will read them, and the queue
    /// would grow for as long as the process runs.
    pub fn discard(&self) {
        drop(self.receiver());
    }

    /// The other end, for the one reader who passes events on to clients. `None` the second time.
    pub fn receiver(&self) -> Option<UnboundedReceiver<Event>> {
        // The lock guards against two takers only; it is never held for long.
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Publishes the events of one pod and its containers.
#[derive(Clone, Debug)]
pub struct Pod {
    sandbox: Arc<Sandbox>,
    sender: UnboundedSender<Event>,
}

impl Pod {
    /// Publishes that something happened to the container with this id, or to the sandbox itself.
    pub fn publish(&self, kind: Kind, id: &str) {
        // It fails if the reader is gone, or if nobody is to read them.
        let _ = self.sender.send(Event { kind, sandbox: self.sandbox.clone(), id: id.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_nobody_reads_are_not_kept() {
        let events = Events::new();
        events.discard();
        assert!(events.sender.is_closed() && events.receiver().is_none());
    }
}
