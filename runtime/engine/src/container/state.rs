//! How a container's last run went, and whether one is under way.

use berth_shim::record::End;
use serde::{Deserialize, Serialize};

use crate::{health::Health, restart::Restarts};

/// `state.json`. Times are in nanoseconds since the epoch, 0 for never.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Last {
    /// Whether a run has begun whose end is not on record.
    pub running: bool,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    /// Why the last start failed.
    pub error: String,
    pub oom: bool,
    /// What its policy goes by.
    pub restarts: Restarts,
    /// What its probes have found. On disk is what it was when its status last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

impl Last {
    /// Stands for a record that is damaged: a run has ended, and nobody knows how.
    pub(crate) fn lost(created_at: i64) -> Self {
        Self {
            started_at: created_at,
            finished_at: created_at,
            exit_code: End::RecordLost.code(),
            error: "the record of its state was damaged".to_owned(),
            ..Self::default()
        }
    }

    /// What a container without a run is.
    pub(crate) fn phase(&self) -> Phase {
        if self.started_at == 0 { Phase::Created } else { Phase::Exited }
    }
}

/// What it does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has never run.
    Created,
    Running {
        pid: u32,
    },
    /// It runs, and its processes are frozen.
    Paused {
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
    /// How many runs have ended without another one to follow.
    pub ended: u64,
    /// Whether a user waits for the end of the run, having asked for it.
    pub stopping: bool,
    pub last: Last,
}

impl State {
    /// Of a container without a run.
    pub(crate) fn at_rest(last: Last) -> Self {
        Self { phase: last.phase(), ended: 0, stopping: false, last }
    }

    /// Whether it has processes, be they frozen.
    pub(crate) fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Whether dockerd calls it running: it does, or its policy is about to start it.
    pub(crate) fn is_active(&self) -> bool {
        self.is_running() || self.phase == Phase::Restarting
    }

    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.phase, Phase::Paused { .. })
    }

    /// Its first process, as the host counts; 0 if that is not known.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.phase {
            Phase::Running { pid } | Phase::Paused { pid } => Some(pid),
            _ => None,
        }
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
            Phase::Paused { .. } => "paused",
            Phase::Restarting => "restarting",
            Phase::Exited => "exited",
            Phase::Removing | Phase::Removed => "removing",
        }
    }
}
