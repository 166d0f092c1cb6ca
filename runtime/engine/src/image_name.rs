//! Names of images as docker shows them: without what is implied. The store has them in full,
//! `docker.io/library/busybox:latest`.

/// The short form of a stored name: `busybox:latest`, `someone/tool:1`, `quay.io/a/b@sha256:…`.
pub(crate) fn familiar(stored: &str) -> &str {
    let Some(of_hub) = stored.strip_prefix("docker.io/") else { return stored };
    of_hub.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(of_hub)
}

/// A name as dockerd repeats it where it is unknown: with the tag that was meant.
pub(crate) fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') || name.contains('@') {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
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
        assert_eq!(refusal("Host.example/b"), None);
    }
}
