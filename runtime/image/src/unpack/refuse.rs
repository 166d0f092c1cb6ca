//! Errors for tars that are malformed or contain what a layer must not.

use std::io;

use berth_base::error::Error;

/// `FailedPrecondition`, because pulling the same image again would fail in the same way.
pub(super) fn refuse(what: impl Into<String>) -> anyhow::Error {
    Error::precondition(what).into()
}

/// The error for a malformed header field.
pub(super) fn damaged(field: &str, error: &io::Error) -> anyhow::Error {
    refuse(format!("{field}: {error}"))
}

/// The error for a tar that is truncated or malformed.
pub(super) fn unreadable(error: &io::Error) -> anyhow::Error {
    refuse(format!("read tar: {error}"))
}
