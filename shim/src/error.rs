//! Failures of a step: what was being done, to what, and the error number.

use std::{io, path::Path};

pub(crate) use berth_shim::record::Failure;

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A failure that no syscall reported.
pub(crate) fn failure(step: impl Into<String>, subject: impl AsRef<Path>) -> Failure {
    Failure { step: step.into(), path: subject.as_ref().display().to_string(), errno: 0 }
}

/// Names the step that a syscall failed in.
pub(crate) trait Step<T> {
    fn step(self, step: &str) -> Result<T>;
    fn step_on(self, step: &str, subject: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Step<T> for std::result::Result<T, E> {
    fn step(self, step: &str) -> Result<T> {
        self.step_on(step, "")
    }

    fn step_on(self, step: &str, subject: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            Failure {
                step: error.raw_os_error().map_or_else(|| format!("{step}: {error}"), |_| step.to_owned()),
                path: subject.as_ref().display().to_string(),
                errno: error.raw_os_error().unwrap_or(0),
            }
        })
    }
}
