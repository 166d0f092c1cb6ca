//! The gRPC code of each kind of failure. The kubelet acts on NOT_FOUND and DEADLINE_EXCEEDED, so
//! they are never used for anything else.

use berth_base::error::{Error, Kind};
use tonic::{Code, Status};

/// The gRPC status of a failure.
pub(crate) fn to_status(error: Error) -> Status {
    // The kubelet recognizes two failures of pulls by the first word of the message, and only where
    // the code is Unknown (cri-api, pkg/errors). It then shows the word as the container's reason.
    let (code, word) = match error.kind {
        Kind::NotFound => (Code::NotFound, ""),
        Kind::InvalidArgument => (Code::InvalidArgument, ""),
        Kind::AlreadyExists => (Code::AlreadyExists, ""),
        Kind::FailedPrecondition => (Code::FailedPrecondition, ""),
        Kind::DeadlineExceeded => (Code::DeadlineExceeded, ""),
        Kind::Unauthenticated => (Code::Unauthenticated, ""),
        Kind::PermissionDenied => (Code::PermissionDenied, ""),
        Kind::RegistryUnavailable => (Code::Unknown, "RegistryUnavailable: "),
        Kind::SignatureValidationFailed => (Code::Unknown, "SignatureValidationFailed: "),
        Kind::ResourceExhausted => (Code::ResourceExhausted, ""),
        Kind::Internal => (Code::Internal, ""),
    };
    Status::new(code, format!("{word}{}", error.message))
}

/// The name of a code as gRPC for Go writes it, which is how dashboards know it.
pub(crate) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
