//! Image references: `[host[:port]/]path[:tag][@digest]`, parsed by hand, because a regex costs 12 MB and gets IPv6 wrong.
//!
//! Grammar: github.com/distribution/reference. Familiar names are completed as Docker does: `busybox` is
//! `docker.io/library/busybox:latest`.

use std::fmt;

use crate::error::{Error, Result};

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Of a repository; the limit of the grammar.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A complete name: it has a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    /// `docker.io`, `10.0.0.1:5000`, `[::1]:5000`.
    pub host: String,
    /// `library/busybox`.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(String);

impl Digest {
    /// # Errors
    /// Another algorithm, or not 64 lower-case hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) =>
            {
                Ok(Self(text.to_owned()))
            }
            Some(_) => Err(Error::invalid(format!("{text:?} is not a digest: sha256 has 64 hexadecimal digits"))),
            None => Err(Error::invalid(format!("{text:?} is not a digest that berth knows (sha256:...)"))),
        }
    }

    pub(crate) fn of(sha256: impl AsRef<[u8]>) -> Self {
        Self(sha256.as_ref().iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}")))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without the algorithm: a file name.
    pub(crate) fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// Parses and completes a name.
    ///
    /// # Errors
    /// `InvalidArgument` that says which part is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |what: &str| Error::invalid(format!("{text:?} is not an image reference: {what}"));
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to a port or to an IPv6 address.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((path, tag)) => (&name[..last + path.len()], Some(tag)),
            None => (name, None),
        };
        let (host, repository) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path.to_owned()),
            Some(_) => (DEFAULT_HOST, name.to_owned()),
            None => (DEFAULT_HOST, format!("library/{name}")),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        if repository.len() > MAX_NAME {
            return Err(wrong("the repository is longer than 255 characters"));
        }
        if !is_valid_host(host) {
            return Err(wrong("bad registry host"));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(wrong(
                "a repository has lower-case letters, digits and single separators . _ - between slashes",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("a tag has up to 128 letters, digits, and . _ - but not first"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }

    /// `host/repository`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What the registry is asked for: the digest if there is one.
    pub(crate) fn target(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// `host/repository:tag`, for references that are by tag alone: a digest decides when both are given.
    pub(crate) fn repo_tag(&self) -> Option<String> {
        let tag = self.tag.as_ref().filter(|_| self.digest.is_none())?;
        Some(format!("{}:{tag}", self.name()))
    }

    pub(crate) fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// The first component is a host if it could not be a path: it has a dot or a colon, an upper-case letter, or is localhost.
fn is_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':', '[']) || text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Runs of lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric);
    let separators =
        text.split(|c: char| alphanumeric(c as u8) && c.is_ascii()).filter(|separator| !separator.is_empty());
    ends && separators
        .into_iter()
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_completed() {
        for (text, complete) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("a/b", "docker.io/a/b:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:2", "localhost:5000/a:2"),
            ("127.0.0.1:5000/a/b/c:v1.2-x_y", "127.0.0.1:5000/a/b/c:v1.2-x_y"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("UPPER/x", "UPPER/x:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("a__b/c.d--e", "docker.io/a__b/c.d--e:latest"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), complete, "{text}");
        }
        let both = Reference::parse(&format!("h.io/a:1@sha256:{HEX}")).unwrap();
        assert_eq!((both.target().len(), both.repo_tag()), (71, None));
        assert_eq!(Reference::parse(&format!("h.io/a@sha256:{HEX}")).unwrap().tag, None);
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            "/",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:12",
            "a@md5:00",
            "Upper",
            "a/B",
            "a//b",
            "a/",
            "/a",
            "h.io/",
            "a b",
            "a:b c",
            "a:-x",
            "h.io:/a",
            "h.io:99999/a",
            "h.io:x/a",
            "[::1/a",
            "[zz]:1/a",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "é",
            "a:é",
            "..",
            "a/../b",
            "-h.io/a",
            &long,
        ] {
            assert_eq!(Reference::parse(text).unwrap_err().kind, Kind::InvalidArgument, "{text:?}");
        }
    }
}
