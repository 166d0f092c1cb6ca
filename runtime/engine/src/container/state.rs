//! How a container's last run went, and whether one is under way.

use serde::{Deserialize, Serialize};

/// `state.json`. Times are in nanoseconds since the epoch, 0 for never.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Last {
    /// Set before a run is made, and cleared when its end is on record.
    pub wanted: bool,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    /// Why the last start failed.
    pub error: String,
    pub oom: bool,
    /// Restarts by its policy since it was last started by hand.
    pub restarts: u32,
    /// Whether it was stopped or killed by hand, which a restart policy respects.
    pub manually_stopped: bool,
    /// Set before anything of it is removed.
    pub removing: bool,
}

/// What it does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has never run.
    Created,
    Running {
        pid: u32,
    },
    /// It has ended, and its policy starts it again.
    Restarting,
    Exited,
    Removing,
    /// Nothing of it is left. Only those that wait for it see this.
    Removed,
}

/// What readers see.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub phase: Phase,
    /// How many runs have ended.
    pub ended: u64,
    pub last: Last,
}

impl State {
    /// Of a container without a run.
    pub(crate) fn at_rest(last: Last) -> Self {
        let phase = if last.started_at == 0 { Phase::Created } else { Phase::Exited };
        Self { phase, ended: 0, last }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether nothing is left of it.
    pub(crate) fn is_removed(&self) -> bool {
        self.phase == Phase::Removed
    }

    /// The word that `State.Status` has for it.
    pub(crate) fn status(&self) -> &'static str {
        match self.phase {
            Phase::Created => "created",
            Phase::Running { .. } => "running",
            Phase::Restarting => "restarting",
            Phase::Exited => "exited",
            Phase::Removing | Phase::Removed => "removing",
        }
    }
}
