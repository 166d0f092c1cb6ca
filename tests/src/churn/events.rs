//! Follows GetContainerEvents through all restarts, and compares it with what verbs have answered.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{bail, ensure};
use berth_proto::v1::{self, ContainerEventType};
use tokio::{sync::Notify, time::Instant};

use super::{board::Board, report::Report};
use crate::client::Cri;

/// How long an event may be on its way.
const SOON: Duration = Duration::from_secs(20);

/// What happened to a container or a pod, in the only order that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

impl From<ContainerEventType> for Kind {
    fn from(kind: ContainerEventType) -> Self {
        match kind {
            ContainerEventType::ContainerCreatedEvent => Self::Created,
            ContainerEventType::ContainerStartedEvent => Self::Started,
            ContainerEventType::ContainerStoppedEvent => Self::Stopped,
            ContainerEventType::ContainerDeletedEvent => Self::Deleted,
        }
    }
}

#[derive(Debug, Default)]
struct Books {
    /// The daemon that is listened to.
    generation: Option<u64>,
    /// What this daemon has said.
    said: HashSet<(String, Kind)>,
    /// The last that any daemon has said of each object.
    last: HashMap<String, Kind>,
    /// What this daemon has to say, since it has answered a verb.
    due: HashSet<(String, Kind)>,
}

/// What was said and what is due.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    books: Mutex<Books>,
    changed: Notify,
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon that is listened to, as a number.
    pub(super) fn generation(&self) -> Option<u64> {
        self.books().generation
    }

    /// This daemon has answered a verb that was asked while it was listened to: this is due.
    pub(super) fn expect(&self, generation: u64, id: &str, kind: Kind) {
        let mut books = self.books();
        let event = (id.to_owned(), kind);
        if books.generation == Some(generation) && !books.said.contains(&event) {
            books.due.insert(event);
        }
    }

    /// Waits until the daemon has said all that is due.
    ///
    /// # Errors
    /// It does not.
    pub(super) async fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let changed = self.changed.notified();
            let due = self.books().due.clone();
            if due.is_empty() {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                bail!("events that did not come: {due:?}");
            }
        }
    }

    fn begin(&self, generation: u64) {
        let mut books = self.books();
        books.generation = Some(generation);
        books.said.clear();
        books.due.clear();
    }

    fn end(&self) {
        let mut books = self.books();
        books.generation = None;
        books.due.clear();
        self.changed.notify_waiters();
    }

    /// # Errors
    /// The event cannot come after those before it.
    fn hear(&self, event: &v1::ContainerEventResponse) -> anyhow::Result<()> {
        let kind = Kind::from(event.container_event_type());
        let id = event.container_id.clone();
        ensure!(event.pod_sandbox_status.is_some(), "an event without its pod: {event:?}");
        let mut books = self.books();
        // A daemon says again what it found at its start: that containers run, or have ended.
        let last = books.last.get(&id).copied();
        ensure!(last.is_none_or(|last| last <= kind), "{kind:?} of {id} comes after {last:?}");
        ensure!(
            kind != Kind::Deleted
                || !books.said.contains(&(id.clone(), Kind::Started))
                || books.said.contains(&(id.clone(), Kind::Stopped)),
            "{id} was started and deleted, and its end was not told"
        );
        ensure!(books.said.insert((id.clone(), kind)), "{kind:?} of {id} is said twice");
        books.due.remove(&(id.clone(), kind));
        books.last.insert(id, kind);
        self.changed.notify_waiters();
        Ok(())
    }
}

/// Listens to one daemon after the other, until the run has failed or this is dropped.
///
/// # Errors
/// An event is wrong, or a daemon that lives says no more.
pub(super) async fn follow(
    socket: std::path::PathBuf,
    board: Arc<Board>,
    ledger: Arc<Ledger>,
    report: Arc<Report>,
) -> anyhow::Result<()> {
    while !board.has_failed() {
        let generation = board.served().await;
        let before = board.now();
        let mut runtime = Cri::connect(&socket).runtime;
        let heard = match runtime.get_container_events(v1::GetEventsRequest {}).await {
            Ok(stream) => {
                ledger.begin(generation);
                listen(stream.into_inner(), &ledger, &report).await?
            }
            Err(status) => status.to_string(),
        };
        ledger.end();
        ensure!(
            board.now().daemon_died_since(before),
            "the events of a daemon that lives ended: {heard}"
        );
    }
    Ok(())
}

/// Reads events until the stream ends, and returns why it did.
async fn listen(
    mut stream: tonic::Streaming<v1::ContainerEventResponse>,
    ledger: &Ledger,
    report: &Report,
) -> anyhow::Result<String> {
    let mut last = 0;
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                ensure!(event.created_at > last, "an event from before the one before: {event:?}");
                last = event.created_at;
                report.event();
                ledger.hear(&event)?;
            }
            Ok(None) => return Ok("end of the stream".to_owned()),
            Err(status) => return Ok(status.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, kind: ContainerEventType) -> v1::ContainerEventResponse {
        v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            pod_sandbox_status: Some(v1::PodSandboxStatus::default()),
            ..Default::default()
        }
    }

    #[test]
    fn events_come_in_the_order_of_a_life_and_once_from_each_daemon() {
        use ContainerEventType::{
            ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
            ContainerStoppedEvent as Stopped,
        };
        let ledger = Ledger::default();
        let hears = |kind| ledger.hear(&event("a", kind)).is_ok();
        ledger.begin(0);
        assert!(hears(Started));
        assert!(!hears(Started));
        // The next daemon finds it running, and says so.
        ledger.end();
        ledger.begin(2);
        assert!(hears(Started) && !hears(Deleted));
        assert!(hears(Stopped) && hears(Deleted) && !hears(Started));
    }

    #[tokio::test]
    async fn what_a_daemon_that_was_killed_did_not_say_is_not_due() {
        let ledger = Ledger::default();
        ledger.begin(0);
        ledger.expect(0, "a", Kind::Created);
        ledger.end();
        ledger.begin(2);
        ledger.expect(0, "b", Kind::Created);
        ledger.expect(2, "c", Kind::Created);
        let waiting = ledger.settle();
        ledger.hear(&event("c", ContainerEventType::ContainerCreatedEvent)).unwrap();
        waiting.await.unwrap();
    }
}
