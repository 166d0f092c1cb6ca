//! The version of the API, which clients put first in the path: `/v1.47/containers/json`.

use super::error::{Failure, Result};

/// A version `1.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub u32);

/// What is announced. From 1.52 on `NetworkSettings.IPAddress` and its like are gone, which many
/// tools read.
pub(crate) const NEWEST: Version = Version(51);
pub(crate) const OLDEST: Version = Version(24);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

/// Splits a path into its version and the rest. Paths without a version mean the newest.
///
/// # Errors
/// 400 for a version that is not served, in dockerd's words.
pub(crate) fn split(path: &str) -> Result<(Version, &str)> {
    let Some((text, rest)) = path
        .strip_prefix("/v")
        .filter(|text| text.starts_with(|first: char| first.is_ascii_digit()))
        .and_then(|text| text.find('/').map(|at| text.split_at(at)))
    else {
        return Ok((NEWEST, path));
    };
    let parsed = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    let Some((major, minor)) = parsed else { return Err(Failure::not_found("page not found")) };
    if (major, minor) > (1, NEWEST.0) {
        return Err(Failure::bad_request(format!(
            "client version {text} is too new. Maximum supported API version is {NEWEST}"
        )));
    }
    if (major, minor) < (1, OLDEST.0) {
        let refusal = Failure::bad_request(format!(
            "client version {text} is too old. Minimum supported API version is {OLDEST}, please \
             upgrade your client to a newer version"
        ));
        return Err(Failure { is_plain: true, ..refusal });
    }
    Ok((Version(minor), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_off_and_checked() {
        assert_eq!(split("/v1.47/containers/json").unwrap(), (Version(47), "/containers/json"));
        assert_eq!(split("/containers/json").unwrap(), (NEWEST, "/containers/json"));
        assert_eq!(split("/version").unwrap(), (NEWEST, "/version"));
        assert_eq!(split("/volumes").unwrap(), (NEWEST, "/volumes"));
        assert!(split("/v1.99/info").unwrap_err().message.contains("1.99 is too new"));
        assert!(split("/v1.12/info").unwrap_err().message.contains("1.12 is too old"));
    }
}
