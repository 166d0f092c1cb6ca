//! Failures of a step: what was being done, to what, and the error number.

use std::{io, path::Path};

pub(crate) use berth_shim::record::{Failure, Fault};

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A failure of the node that no system call reported.
pub(crate) fn failure(step: impl Into<String>, subject: impl AsRef<Path>) -> Failure {
    failed(step, subject, Fault::Node)
}

/// A failure that no system call reported, and that comes from the request or the image: the caller
/// gets `InvalidArgument` for it.
pub(crate) fn invalid(step: impl Into<String>, subject: impl AsRef<Path>) -> Failure {
    failed(step, subject, Fault::Request)
}

fn failed(step: impl Into<String>, subject: impl AsRef<Path>, fault: Fault) -> Failure {
    Failure { step: step.into(), path: subject.as_ref().display().to_string(), errno: 0, fault }
}

/// Names the step in which a system call failed.
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
            let errno = error.raw_os_error();
            // std makes errors of its own, such as for a NUL byte in a path, which have no number
            // that could be looked up later: their text is kept.
            let step = errno.map_or_else(|| format!("{step}: {error}"), |_| step.to_owned());
            Failure { errno: errno.unwrap_or(0), ..failure(step, subject) }
        })
    }
}
