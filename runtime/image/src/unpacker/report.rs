//! What the process reports to the daemon: one line of JSON, its only output.

use berth_base::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::unpack::Contents;

/// The most bytes that the daemon reads of a report. Only a layer with hundreds of thousands of
/// directories that need something done comes near it.
pub(super) const MAX_REPORT: usize = 16 << 20;
/// The most characters of an error that are passed on. It may quote what is in the layer.
const MAX_MESSAGE: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// Whether the kernel has Landlock, and so confines the process by that as well.
    pub has_landlock: bool,
    outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Unpacked(Contents),
    Failed { kind: Kind, message: String },
}

impl Report {
    pub(super) fn new(has_landlock: bool, unpacked: Result<Contents>) -> Self {
        let outcome = match unpacked {
            Ok(contents) => Outcome::Unpacked(contents),
            Err(error) => Outcome::Failed {
                kind: error.kind,
                message: error.message.chars().take(MAX_MESSAGE).collect(),
            },
        };
        Self { has_landlock, outcome }
    }

    /// # Errors
    /// That of the process.
    pub(super) fn into_contents(self) -> Result<Contents> {
        match self.outcome {
            Outcome::Unpacked(contents) => Ok(contents),
            Outcome::Failed { kind, message } => Err(Error::new(kind, message)),
        }
    }
}
