//! The few kinds of failure that the kubelet tells apart, and everything else.

use std::fmt;

use nix::errno::Errno;

/// Which gRPC code a failure becomes (`cri.md` part 0: NOT_FOUND and DEADLINE_EXCEEDED are load-bearing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NotFound,
    InvalidArgument,
    AlreadyExists,
    FailedPrecondition,
    DeadlineExceeded,
    /// A registry wants other credentials.
    Unauthenticated,
    PermissionDenied,
    /// A registry, or the way to it, is down.
    RegistryUnavailable,
    /// An image does not bear the signatures that the policy wants.
    SignatureValidationFailed,
    /// A disk is full, a limit is reached.
    ResourceExhausted,
    Internal,
}

/// What was being done, to what, and the cause, once. Clone: everyone who joined an operation gets its answer.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    pub kind: Kind,
    pub message: String,
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    /// Says what was being done when this happened.
    #[must_use]
    pub(crate) fn during(mut self, what: impl fmt::Display) -> Self {
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

/// A full disk is told apart from a broken one: the kubelet's eviction acts on it.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        if let Some(own) = error.downcast_ref::<Self>() {
            return Self::new(own.kind, format!("{error:#}"));
        }
        let kind = match error.chain().find_map(errno) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Kind::ResourceExhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{error:#}"))
    }
}

/// The kernel's number, whichever crate has made the call.
fn errno(cause: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let std = || cause.downcast_ref::<std::io::Error>()?.raw_os_error();
    let rustix = || cause.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error());
    cause.downcast_ref::<Errno>().copied().or_else(|| std().or_else(rustix).map(Errno::from_raw))
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        // The kubelet knows two failures by the word that the text begins with, and looks only where the code is Unknown (cri-api
        // pkg/errors).
        let (code, word) = match error.kind {
            Kind::NotFound => (tonic::Code::NotFound, ""),
            Kind::InvalidArgument => (tonic::Code::InvalidArgument, ""),
            Kind::AlreadyExists => (tonic::Code::AlreadyExists, ""),
            Kind::FailedPrecondition => (tonic::Code::FailedPrecondition, ""),
            Kind::DeadlineExceeded => (tonic::Code::DeadlineExceeded, ""),
            Kind::Unauthenticated => (tonic::Code::Unauthenticated, ""),
            Kind::PermissionDenied => (tonic::Code::PermissionDenied, ""),
            Kind::RegistryUnavailable => (tonic::Code::Unknown, "RegistryUnavailable: "),
            Kind::SignatureValidationFailed => (tonic::Code::Unknown, "SignatureValidationFailed: "),
            Kind::ResourceExhausted => (tonic::Code::ResourceExhausted, ""),
            Kind::Internal => (tonic::Code::Internal, ""),
        };
        tonic::Status::new(code, format!("{word}{}", error.message))
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
        for error in [anyhow::Error::from(std), rustix.context("make directory").unwrap_err(), Errno::EDQUOT.into()] {
            assert_eq!(Error::from(error.context("layer")).kind, Kind::ResourceExhausted);
        }
        assert_eq!(Error::from(anyhow::Error::from(Errno::EROFS)).kind, Kind::Internal);
    }
}
