//! Reads responses: documents of bounded length, and errors of the kinds that the kubelet acts on.

use std::time::{Duration, SystemTime};

use berth_base::error::{Error, Kind, Result};
use reqwest::{Response, StatusCode, header};
use serde::Deserialize;

use crate::documents::MAX_DOCUMENT;

/// For a whole manifest or config. The timeout for single reads would never stop a server that
/// sends one byte a minute.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a small document to its end.
///
/// # Errors
/// `InvalidArgument` if it is larger than 4 MiB; `RegistryUnavailable` if it breaks off or takes
/// longer than a minute.
pub(super) async fn read_document(response: Response) -> Result<Vec<u8>> {
    match tokio::time::timeout(DOCUMENT_TIMEOUT, read_bounded(response)).await {
        Ok(document) => document,
        Err(_) => Err(unavailable(format!(
            "the document did not arrive within {} s",
            DOCUMENT_TIMEOUT.as_secs()
        ))),
    }
}

async fn read_bounded(mut response: Response) -> Result<Vec<u8>> {
    // Content-Length may be absent or a lie, so only the bytes that arrive are counted.
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| unavailable(root_cause(&error)))?
    {
        if bytes.len() + chunk.len() > MAX_DOCUMENT {
            return Err(Error::invalid("larger than 4 MiB"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Whether the same request may succeed later.
pub(super) fn is_transient(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// How long the registry asks its clients to wait (the header Retry-After).
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    pause_until(value, SystemTime::now())
}

/// Parses seconds or a date (RFC 9110 section 10.2.3). A date in the past means no pause.
fn pause_until(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The error for a status other than success.
pub(super) fn status_error(url: &str, response: &Response) -> Error {
    let status = response.status();
    let message = format!("{url}: {status}");
    match status {
        StatusCode::UNAUTHORIZED => Error::new(Kind::Unauthenticated, message),
        StatusCode::FORBIDDEN => Error::new(Kind::PermissionDenied, message),
        StatusCode::NOT_FOUND => Error::not_found(message),
        status if is_transient(status) => unavailable(message),
        _ => Error::new(Kind::Internal, message),
    }
}

/// As `status_error`, in the registry's own words where it has any, as docker's clients show them:
/// `denied: requested access to the resource is denied`.
pub(super) async fn refusal(response: Response) -> Error {
    let status = response.status();
    let Error { kind, .. } = status_error("", &response);
    let document = read_document(response).await.unwrap_or_default();
    Error::new(kind, refusal_text(status, &document))
}

/// `errors` of the OCI distribution specification.
#[derive(Deserialize)]
struct Refusals {
    #[serde(default)]
    errors: Vec<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    #[serde(default)]
    message: String,
}

fn refusal_text(status: StatusCode, document: &[u8]) -> String {
    match (refusal_words(document), status) {
        (Some(words), _) => words,
        (None, StatusCode::UNAUTHORIZED) => "unauthorized: authentication required".to_owned(),
        (None, status) => format!("received unexpected HTTP status: {status}"),
    }
}

fn refusal_words(document: &[u8]) -> Option<String> {
    let refusals: Refusals = serde_json::from_slice(document).ok()?;
    let refusals = refusals.errors.into_iter();
    let lines: Vec<String> = refusals
        .map(|Refusal { code, message }| {
            format!("{}: {message}", code.replace('_', " ").to_lowercase())
        })
        .collect();
    match lines.as_slice() {
        [] => None,
        [line] => Some(line.clone()),
        lines => Some(format!("errors:\n{}\n", lines.join("\n"))),
    }
}

/// As `status_error`, with the registry's words at its end where it has any.
pub(super) async fn explained_error(url: &str, response: Response) -> Error {
    let error = status_error(url, &response);
    let document = read_document(response).await.unwrap_or_default();
    match refusal_words(&document) {
        Some(words) => Error { message: format!("{}: {words}", error.message), ..error },
        None => error,
    }
}

pub(super) fn unavailable(message: String) -> Error {
    Error::new(Kind::RegistryUnavailable, message)
}

/// The innermost cause of a failed request. reqwest's own message hides it behind the URL, which
/// may contain a secret.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let cause = std::iter::successors(Some(error), |error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string);
    match cause.contains("CaUsedAsEndEntity") {
        // rustls is stricter here than OpenSSL and Go. It is a common mistake, because
        // `openssl req -x509` makes such certificates by default.
        true => format!(
            "{cause} (the server shows a CA's certificate: it needs one with \
            basicConstraints=CA:FALSE)"
        ),
        false => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_registry() {
        let denied = br#"{"errors":[{"code":"DENIED","message":"no","detail":[]}]}"#;
        let two = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"a"},{"code":"B"}]}"#;
        for (status, document, expected) in [
            (403, &denied[..], "denied: no"),
            (404, two, "errors:\nname unknown: a\nb: \n"),
            (401, b"", "unauthorized: authentication required"),
            (500, b"<html>", "received unexpected HTTP status: 500 Internal Server Error"),
        ] {
            assert_eq!(refusal_text(StatusCode::from_u16(status).unwrap(), document), expected);
        }
    }

    #[test]
    fn a_registry_asks_for_a_pause_in_seconds_or_by_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:30 GMT").unwrap();
        let seconds = |text| pause_until(text, now).map(|pause| pause.as_secs());
        assert_eq!(
            (seconds("120"), seconds("Sun, 06 Nov 1994 08:49:37 GMT")),
            (Some(120), Some(7))
        );
        assert_eq!((seconds("Sun, 06 Nov 1994 08:00:00 GMT"), seconds("soon")), (Some(0), None));
    }
}
