//! Failures as docker answers them: a status and `{"message": …}`.

use berth_base::error::{Error, Kind};
use http::StatusCode;

/// A failure of a request.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub status: StatusCode,
    pub message: String,
    /// Whether it is answered as text, and not as JSON.
    pub is_plain: bool,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), is_plain: false }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind {
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::InvalidArgument => StatusCode::BAD_REQUEST,
            Kind::AlreadyExists | Kind::FailedPrecondition => StatusCode::CONFLICT,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::PermissionDenied | Kind::SignatureValidationFailed => StatusCode::FORBIDDEN,
            Kind::DeadlineExceeded
            | Kind::RegistryUnavailable
            | Kind::ResourceExhausted
            | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Error::from(error).into()
    }
}
