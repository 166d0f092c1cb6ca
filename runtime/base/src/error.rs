//! Failures: the few kinds that the kubelet tells apart, and everything else as `Internal`.

use std::{fmt, io};

use berth_shim::record::Failure;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What kind of failure it was, as far as clients act on it. Each edge, such as gRPC, has its own
/// code for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    NotFound,
    InvalidArgument,
    AlreadyExists,
    FailedPrecondition,
    DeadlineExceeded,
    /// A registry does not accept the credentials.
    Unauthenticated,
    PermissionDenied,
    /// A registry cannot be reached, or fails itself.
    RegistryUnavailable,
    /// An image does not have the signatures that the policy requires.
    SignatureValidationFailed,
    /// A disk is full, or a limit is reached.
    ResourceExhausted,
    Internal,
}

/// A failure. The message says what was being done, to what, and the cause, once.
///
/// It is `Clone`, because everybody who joined an operation gets its result.
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// The step of a container's or an exec's start that failed, if it was one.
    pub step: Option<Box<Failure>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), step: None }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    /// Of a step of a start that failed.
    pub fn of_step(kind: Kind, failure: &Failure) -> Self {
        Self { step: Some(Box::new(failure.clone())), ..Self::new(kind, failure.to_string()) }
    }

    /// Adds what was being done when this happened.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Keeps the kind of an `Error` that somebody added context to. Of all others, a full disk or an
/// exhausted quota is told apart, because the user can do something about it.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        // anyhow finds it below any context that was added.
        if let Some(own) = error.downcast_ref::<Self>() {
            return Self { message: format!("{error:#}"), ..own.clone() };
        }
        // The cause may be anywhere in the chain: every layer adds what it was doing.
        let kind = match error.chain().find_map(errno) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Kind::ResourceExhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{error:#}"))
    }
}

/// The error number of a failed system call, whichever crate has made it: each has its own type.
pub fn errno(cause: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    if let Some(errno) = cause.downcast_ref::<Errno>() {
        return Some(*errno);
    }
    let number = match cause.downcast_ref::<rustix::io::Errno>() {
        Some(errno) => errno.raw_os_error(),
        None => cause.downcast_ref::<io::Error>()?.raw_os_error()?,
    };
    Some(Errno::from_raw(number))
}

/// Makes a success of a removal whose object does not exist: what was wanted is the case.
pub fn ignore_not_found(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_full_disk_is_told_whoever_met_it() {
        let std = std::io::Error::from_raw_os_error(Errno::ENOSPC as i32);
        let rustix: Result<(), _> = Err(rustix::io::Errno::NOSPC);
        for error in [
            anyhow::Error::from(std),
            rustix.context("make directory").unwrap_err(),
            Errno::EDQUOT.into(),
        ] {
            assert_eq!(Error::from(error.context("layer")).kind, Kind::ResourceExhausted);
        }
        assert_eq!(Error::from(anyhow::Error::from(Errno::EROFS)).kind, Kind::Internal);
    }
}
