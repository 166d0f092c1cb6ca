//! Image references: `[host[:port]/]repository[:tag][@digest]`.
//!
//! The grammar is that of github.com/distribution/reference. Familiar names are completed as Docker
//! does: `busybox` is `docker.io/library/busybox:latest`. The parser is written by hand, because
//! the usual regular expression costs 12 MB of memory when compiled, and gets IPv6 addresses wrong.

use std::fmt;

use berth_base::error::{Error, Result};

use crate::digest::Digest;

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// The grammar's limit for a repository.
const MAX_REPOSITORY: usize = 255;
/// The grammar's limit for a tag.
const MAX_TAG: usize = 128;

/// A complete reference: it has a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    /// `docker.io`, `10.0.0.1:5000`, `[::1]:5000`.
    pub host: String,
    /// `library/busybox`.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses and completes a name.
    ///
    /// # Errors
    /// `InvalidArgument`, with the part that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(name);
        // `a/b` is a repository on Docker Hub, `a.io/b` is one on `a.io`.
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            Some(_) | None => (DEFAULT_HOST, name),
        };
        // Two names for the same registry.
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        // Docker Hub's official images are in the namespace `library`, which nobody types.
        let repository = match host == DEFAULT_HOST && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        if let Some(what) = mistake(host, &repository, tag) {
            return Err(Error::invalid(format!("{text:?} is not an image reference: {what}")));
        }
        // With a digest, no tag is needed to decide which image is meant.
        let default_tag = if digest.is_none() { Some(DEFAULT_TAG) } else { None };
        let tag = tag.or(default_tag).map(str::to_owned);
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }

    /// `host/repository`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    pub(crate) fn target(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// `host/repository:tag`. `None` if there is a digest, because then the digest decides which
    /// image is pulled, and the tag may refer to another one by now.
    pub(crate) fn repo_tag(&self) -> Option<String> {
        let tag = self.tag.as_ref().filter(|_| self.digest.is_none())?;
        Some(format!("{}:{tag}", self.name()))
    }

    /// `host/repository@digest`.
    pub(crate) fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// The name of the image in the store: with the digest if there is one, else with the tag.
    pub(crate) fn stored_name(&self) -> String {
        self.digest.as_ref().map_or_else(|| self.to_string(), |digest| self.repo_digest(digest))
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

/// Splits off the tag. A colon after the last slash starts a tag; one before it belongs to a port
/// or an IPv6 address.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].split_once(':') {
        Some((path, tag)) => (&name[..last + path.len()], Some(tag)),
        None => (name, None),
    }
}

/// What is wrong with the parts of a reference, if anything.
fn mistake(host: &str, repository: &str, tag: Option<&str>) -> Option<&'static str> {
    if repository.len() > MAX_REPOSITORY {
        return Some("the repository is longer than 255 characters");
    }
    if !is_valid_host(host) {
        return Some("bad registry host");
    }
    if !repository.split('/').all(is_path_component) {
        return Some(
            "a repository has lower-case letters, digits and single separators . _ - between \
            slashes",
        );
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Some("a tag has up to 128 letters, digits, and . _ - but not first");
    }
    None
}

/// The first component is a host if it could not be part of a repository: it has a dot, a colon or
/// an upper-case letter, or is `localhost`.
fn is_host(text: &str) -> bool {
    text == "localhost"
        || text.contains(['.', ':', '['])
        || text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Strict, because the host becomes part of URLs and the name of a directory in `certs.d`.
fn is_valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            // The address has been checked; any valid label can stand for it in the check below.
            ("v6", port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    name.split('.').all(is_host_label)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or dashes. `..` is not a component,
/// so a repository never leads upwards in a URL or a path.
fn is_path_component(text: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let begins_and_ends_well = text.starts_with(is_alphanumeric) && text.ends_with(is_alphanumeric);
    begins_and_ends_well
        && text.split(is_alphanumeric).filter(|separator| !separator.is_empty()).all(is_separator)
}

fn is_separator(text: &str) -> bool {
    matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-')
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_base::error::Kind;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_completed() {
        for (text, complete) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
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
