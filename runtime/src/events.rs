//! What happens to pods and containers: told here by whoever makes it so, once the new state can be read.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::id::SandboxId;

/// `ContainerEventType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Of a container, or of a sandbox itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub kind: Kind,
    pub sandbox: SandboxId,
    /// The container's id, or the sandbox's.
    pub id: String,
}

/// One queue, so that changes come out of it in the order in which they happened.
#[derive(Debug)]
pub(crate) struct Changes {
    sender: UnboundedSender<Change>,
    receiver: Mutex<Option<UnboundedReceiver<Change>>>,
}

impl Changes {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }

    pub(crate) fn tell(&self, kind: Kind, sandbox: &SandboxId, id: &impl ToString) {
        // Nobody is there to hear it when the daemon ends.
        let _ = self.sender.send(Change { kind, sandbox: sandbox.clone(), id: id.to_string() });
    }

    /// For the one who passes them on.
    pub(crate) fn receiver(&self) -> Option<UnboundedReceiver<Change>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
