//! Paths of the image: text, of which no file is looked at.

use crate::error::{Error, Result};

/// The working directory after `WORKDIR requested` in `current`.
///
/// # Errors
/// In dockerd's words, if nothing is requested.
pub(crate) fn working_dir(current: &str, requested: &str) -> Result<String> {
    match requested {
        "" => Err(Error::new("cannot normalize nothing")),
        absolute if absolute.starts_with('/') => Ok(clean(absolute)),
        relative => Ok(clean(&format!("/{current}/{relative}"))),
    }
}

/// As Go's `filepath.Clean`: without `.`, `..` where that is possible, and slashes that mean nothing.
pub(crate) fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (is_absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_directories_are_joined() {
        for (current, requested, expected) in [
            ("", "x", "/x"),
            ("/a", "b/", "/a/b"),
            ("/a", "../c", "/c"),
            ("/a", "/b//c/./..", "/b"),
            ("/", "../..", "/"),
        ] {
            assert_eq!(working_dir(current, requested).as_deref(), Ok(expected));
        }
        assert!(working_dir("/", "").is_err());
        for (path, expected) in [("", "."), ("./a/../..", ".."), ("a//b/", "a/b"), ("../a", "../a")]
        {
            assert_eq!(clean(path), expected);
        }
    }
}
