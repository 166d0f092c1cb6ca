//! Names of images as docker shows them: without what is implied. The store has them in full,
//! `docker.io/library/busybox:latest`.

pub(crate) use berth_image::familiar;
use berth_image::normalize;

use crate::http::error::{Failure, Result};

/// A name as dockerd repeats it where it is unknown: with the tag that was meant.
pub(crate) fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') || name.contains('@') {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}

/// A full name without its tag or digest.
pub(crate) fn repository(full: &str) -> &str {
    let name = full.split_once('@').map_or(full, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The full name that `repo` and `tag` of a query ask for; `None` without the first.
///
/// # Errors
/// 400 in dockerd's words.
pub(crate) fn tag_reference(repo: &str, tag: &str) -> Result<Option<String>> {
    if repo.is_empty() {
        return Ok(None);
    }
    let full = normalize(repo).ok_or_else(|| invalid(repo))?;
    if full.contains('@') {
        return Err(Failure::bad_request("cannot import digest reference"));
    }
    if tag.is_empty() {
        return Ok(Some(full));
    }
    let tagged = normalize(&format!("{}:{tag}", repository(&full)));
    let tagged = tagged.filter(|tagged| !tagged.contains('@'));
    tagged.map(Some).ok_or_else(|| Failure::bad_request("invalid tag format"))
}

/// The failure of what is no name.
pub(crate) fn invalid(name: &str) -> Failure {
    let refusal = refusal(name).unwrap_or_else(|| "invalid reference format".to_owned());
    Failure::bad_request(refusal)
}

/// The text with which dockerd refuses what is no reference. `None` for what may be one.
pub(crate) fn refusal(name: &str) -> Option<String> {
    let (repository, _) = name.split_once('@').unwrap_or((name, ""));
    let path = match repository.rsplit_once(':') {
        Some((before, after)) if !after.contains('/') => before,
        _ => repository,
    };
    let (host, rest) = path.split_once('/').unwrap_or(("", path));
    let has_host = host.contains(['.', ':']) || host == "localhost";
    let own = if has_host { rest } else { path };
    if !own.chars().any(|c| c.is_ascii_uppercase()) {
        return None;
    }
    let full =
        if own.contains('/') || has_host { own.to_owned() } else { format!("library/{own}") };
    Some(format!("invalid reference format: repository name ({full}) must be lowercase"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_implied_is_left_out() {
        for (stored, shown) in [
            ("docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/someone/tool:1", "someone/tool:1"),
            ("docker.io/library/a/b:1", "library/a/b:1"),
            ("quay.io/library/a:1", "quay.io/library/a:1"),
        ] {
            assert_eq!(familiar(stored), shown);
        }
    }

    #[test]
    fn names_are_repeated_or_refused_as_dockerd_does() {
        for (name, shown) in [("a", "a:latest"), ("h:5000/a", "h:5000/a:latest"), ("a:1", "a:1")] {
            assert_eq!(with_tag(name), shown);
        }
        let text = "invalid reference format: repository name (library/UPPER) must be lowercase";
        assert_eq!(refusal("UPPER:1").as_deref(), Some(text));
        assert_eq!(refusal("a/b:LATEST"), None);
        for (repo, tag, expected) in [
            ("", "1", Ok(None)),
            ("q", "", Ok(Some("docker.io/library/q:latest"))),
            ("q:z", "", Ok(Some("docker.io/library/q:z"))),
            ("h:5000/q:z", "r", Ok(Some("h:5000/q:r"))),
            ("q", "b@d", Err("invalid tag format")),
            ("a b", "", Err("invalid reference format")),
        ] {
            let parsed = tag_reference(repo, tag).map_err(|failure| failure.message);
            assert_eq!(parsed, expected.map(|name| name.map(str::to_owned)).map_err(str::to_owned));
        }
        assert_eq!(refusal("Host.example/b"), None);
    }
}
