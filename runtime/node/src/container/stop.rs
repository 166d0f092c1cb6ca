//! StopContainer: a stop that nothing can lose, and that comes to its end whatever the container's
//! shim does.
//!
//! The stop signal is sent at once and SIGKILL at the deadline, both through the shim. A shim that
//! does not respond, or does not notice that the container has ended, cannot prevent it: the cgroup
//! is killed, and then the shim itself.

use std::{io, sync::Arc, time::Duration};

use berth_base::{
    blocking::blocking,
    clock::{now, since_boot},
    error::{Error, Kind, Result},
    layout,
    observe::{step, step_blocking, steps::stop_container},
};
use berth_shim::{
    protocol::Call,
    record::{self, End, Exited, Found},
};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use tracing::Instrument;

use super::{
    object::{Container, Life, Snapshot, Stopping},
    state::State,
};
use crate::{host::Host, shim};

/// `stop.json`. With it the next daemon finishes a stop that this one began, so that a restart
/// neither forgets the deadline nor sends the stop signal twice.
#[derive(Debug, Serialize, Deserialize)]
struct StopRecord {
    /// When SIGKILL is due, in nanoseconds since the epoch, for daemons that know nothing else.
    deadline: i64,
    /// The same in nanoseconds since boot, which no step of the clock changes: a container that
    /// runs was started in this boot, and so was its stop. Older daemons do not write it.
    #[serde(default)]
    due: Option<i64>,
    /// Whether the stop signal was sent.
    signalled: bool,
}

impl StopRecord {
    /// How long it is until SIGKILL is due. Past that nothing is left, and it follows at once.
    fn left(&self) -> Duration {
        let left = match self.due {
            Some(due) => due.saturating_sub(since_boot()),
            None => self.deadline.saturating_sub(now()),
        };
        Duration::from_nanos(u64::try_from(left).unwrap_or(0))
    }
}

fn has_exited(snapshot: &Snapshot) -> bool {
    matches!(snapshot.state, State::Exited { .. })
}

impl Container {
    /// StopContainer: sends the stop signal, then SIGKILL after `grace`, and returns once the
    /// container has ended. Success when it does not run.
    ///
    /// The stop goes on when its caller goes away. A second call with a shorter grace moves the
    /// deadline forward; one with a longer grace changes nothing.
    ///
    /// # Errors
    /// `DeadlineExceeded`: the kernel cannot end it.
    pub async fn stop(self: &Arc<Self>, host: &Arc<Host>, grace: Duration) -> Result<()> {
        // Subscribed before the state is read, so that no change falls between the two.
        let mut state = self.watch_state();
        let mut failed = {
            // Waits for a start that is under way. The lock is given up before the wait for the end
            // below, so that a second stop can hurry this one.
            let mut life = self.life().await;
            match self.state() {
                State::Created | State::Exited { .. } => return Ok(()),
                State::Unknown { .. } => return Ok(self.end_unknown(host).await?),
                State::Running { .. } => self.begin_stop(&mut life, host, grace, grace.is_zero()),
            }
        };
        tokio::select! {
            ended = state.wait_for(has_exited) => {
                ended.map(drop).map_err(|error| Error::new(Kind::Internal, error.to_string()))
            }
            // An escalation that succeeded drops the sender; the pattern then does not match, and
            // the other branch alone goes on.
            Ok(why) = failed.wait_for(Option::is_some) => {
                let why = why.clone().unwrap_or_default();
                let what = format!("stop container {}: {why}", self.meta.id);
                Err(Error::new(Kind::DeadlineExceeded, what))
            }
        }
    }

    /// Ends a container whose state is unknown. Its shim is not asked, because it could not be
    /// reached before.
    async fn end_unknown(self: &Arc<Self>, host: &Arc<Host>) -> anyhow::Result<()> {
        self.force_end(host).await?;
        if matches!(self.state(), State::Unknown { .. }) {
            self.settle_end(host).await;
        }
        Ok(())
    }

    /// Publishes the end of a container of which nothing lives any more.
    async fn settle_end(self: &Arc<Self>, host: &Arc<Host>) {
        if let Err(error) = self.reconcile(host).await {
            // Nothing of the container lives any more, which is all that the caller asked for. Its
            // records cannot be read, so it counts as killed together with its shim.
            tracing::warn!(
                container = %self.meta.id,
                "stopped, but its exit code cannot be read and is reported as 137: {error:#}"
            );
            self.publish_end(host, None, Exited { end: End::ShimLost, at: now(), oom: false });
        }
    }

    /// Continues a stop that an earlier daemon began, if there is one.
    pub async fn resume_stop(self: &Arc<Self>, host: &Arc<Host>) {
        let path = host.layout.container(&self.meta.id).join(layout::container::STOP);
        match blocking(|| record::read::<StopRecord>(&path)) {
            Ok(Found::Record(record)) => {
                let mut life = self.life().await;
                self.begin_stop(&mut life, host, record.left(), record.signalled);
            }
            Ok(Found::Absent) => {}
            Ok(Found::Damaged) | Err(_) => tracing::warn!(
                container = %self.meta.id,
                "a stop of it was begun, and {} cannot be read: it must be asked for again",
                path.display()
            ),
        }
    }

    /// Begins a stop, or moves the deadline of one that was begun. Where it turns out that the
    /// container cannot be ended, the receiver tells why.
    fn begin_stop(
        self: &Arc<Self>,
        life: &mut Life,
        host: &Arc<Host>,
        grace: Duration,
        signalled: bool,
    ) -> watch::Receiver<Option<String>> {
        let deadline = Instant::now() + grace;
        if let Some(Stopping { deadline: current, failed }) = &life.stopping {
            if deadline < *current.borrow() {
                self.record_stop(host, grace, true);
                current.send_replace(deadline);
            }
            return failed.clone();
        }
        // Recorded before any signal is sent: after a crash in between, the next daemon sends it.
        self.record_stop(host, grace, signalled);
        let (sender, receiver) = watch::channel(deadline);
        let (failure, failed) = watch::channel(None);
        life.stopping = Some(Stopping { deadline: sender, failed: failed.clone() });
        let container = self.clone();
        let host = host.clone();
        let escalation = async move {
            if let Err(error) = container.escalate(&host, receiver, grace, signalled).await {
                // Cleared, so that the kubelet's next StopContainer tries all of it again.
                container.life().await.stopping = None;
                failure.send_replace(Some(format!("{error:#}")));
            }
        };
        tokio::spawn(escalation.in_current_span());
        failed
    }

    fn record_stop(&self, host: &Host, grace: Duration, signalled: bool) {
        let path = host.layout.container(&self.meta.id).join(layout::container::STOP);
        let grace = i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX);
        let record = StopRecord {
            deadline: now().saturating_add(grace),
            due: Some(since_boot().saturating_add(grace)),
            signalled,
        };
        let written = step_blocking(stop_container::RECORD, || {
            match blocking(|| record::write(&path, &record)) {
                // The container has ended and was removed in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                written => anyhow::Ok(written?),
            }
        });
        if let Err(error) = written {
            tracing::warn!(
                container = %self.meta.id,
                "its stop cannot be recorded: if berthd restarts before the container has ended, \
                 the stop must be asked for again: {error:#}"
            );
        }
    }

    /// Sends the stop signal unless that was done, waits for the deadline, and then kills.
    async fn escalate(
        self: &Arc<Self>,
        host: &Arc<Host>,
        mut deadline: watch::Receiver<Instant>,
        grace: Duration,
        signalled: bool,
    ) -> anyhow::Result<()> {
        self.thaw()?;
        if !signalled {
            // In a task of its own: a shim that does not respond must not delay the SIGKILL that is
            // due at the deadline.
            let container = self.clone();
            let host = host.clone();
            let signal = async move {
                let sent = container.signal(container.meta.stop_signal, shim::RESPONSE_LIMIT);
                if let Err(error) = step(stop_container::SIGNAL, sent).await {
                    // Not a failure of the stop: SIGKILL is sent at the deadline.
                    tracing::debug!(
                        container = %container.meta.id,
                        "the stop signal cannot be sent: {error:#}"
                    );
                }
                // A restart from here on does not send the stop signal a second time, which some
                // programs take as an order to exit at once. Not once a removal has begun: the
                // record could come into the directory of another container with this id.
                let life = container.life().await;
                if !life.removing {
                    container.record_stop(&host, grace, true);
                }
            };
            tokio::spawn(signal.in_current_span());
        }
        let mut state = self.watch_state();
        loop {
            let at = *deadline.borrow_and_update();
            // Not left to the timer: it rounds up to the next millisecond, which a stop without
            // grace, as the kubelet's last one, would spend waiting.
            if at <= Instant::now() {
                break;
            }
            // A moved deadline ends this wait, and the next one has the new deadline.
            tokio::select! {
                _ = state.wait_for(has_exited) => return Ok(()),
                _ = deadline.changed() => {}
                () = tokio::time::sleep_until(at) => break,
            }
        }
        // SIGKILL through the shim: it reaps the process, and the exit code on record is the true
        // one.
        let ended = state.wait_for(has_exited);
        let killed = self.signal(Signal::SIGKILL as i32, shim::KILLING);
        match step(stop_container::KILL, killed).await {
            Ok(()) if tokio::time::timeout(shim::LEAVING, ended).await.is_ok() => return Ok(()),
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(container = %self.meta.id, "kill it by its shim: {error:#}");
            }
        }
        step(stop_container::FORCE, self.force_end(host)).await?;
        // Whoever waits for the stop waits for the state, which a disk that fails never tells.
        let mut state = self.watch_state();
        let ended = state.wait_for(has_exited);
        if tokio::time::timeout(shim::KILLING, ended).await.is_err() {
            self.settle_end(host).await;
        }
        Ok(())
    }

    /// Sends a signal to the first process, and does not wait for what comes of it. One that is paused
    /// sees it when it goes on.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        let sent = self.signal(signal, shim::RESPONSE_LIMIT).await;
        sent.map_err(|error| Error::from(error).during(format!("kill container {}", self.meta.id)))
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exited {
        let mut state = self.watch_state();
        loop {
            if let State::Exited { exited, .. } = &state.borrow_and_update().state {
                return exited.clone();
            }
            // It fails only when the sender is gone, which is in `self`.
            let _ = state.changed().await;
        }
    }

    /// Has the shim send a signal to the first process.
    async fn signal(&self, signal: i32, limit: Duration) -> anyhow::Result<()> {
        let call = Call::Signal { exec: None, signal };
        self.running()?.call_within(limit, call, &[]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_builds_are_read() {
        berth_contract::check::<StopRecord>("stop.json");
    }
}
