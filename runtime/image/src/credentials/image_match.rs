//! Finds the entry for an image in a list of credentials. Docker's `config.json` and the kubelet's
//! `CredentialProviderConfig` share these rules.

use std::collections::BTreeMap;

use super::auth_config::server_host;
use crate::{glob::glob_match, reference::Reference};

/// How closely a key matches. The greater value is the closer match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Closeness {
    /// Length of the path in the key.
    path: usize,
    /// The host in the key has no `*`.
    exact_host: bool,
}

/// The entry whose key matches `reference` most closely.
pub(super) fn closest<'a, T>(
    entries: &'a BTreeMap<String, T>,
    reference: &Reference,
) -> Option<&'a T> {
    entries
        .iter()
        .filter_map(|(key, entry)| Some((matches_image(key, reference)?, entry)))
        // Among equal matches the last key wins, so the choice does not depend on chance.
        .max_by_key(|(closeness, _)| *closeness)
        .map(|(_, entry)| entry)
}

/// How closely `key` matches the image; `None` if it does not. A key consists of a host, an
/// optional scheme before it, and an optional prefix of the repository after it. `*` stands for any
/// text within one label of the host, so `*.example.com` does not match `a.b.example.com`.
pub(super) fn matches_image(key: &str, reference: &Reference) -> Option<Closeness> {
    let plain = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (_, path) = plain.split_once('/').unwrap_or((plain, ""));
    let path = path.trim_matches('/');
    // Docker's keys for a whole registry may end with the API version.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = server_host(key);
    let is_match = matches_host(host, &reference.host) && is_below(&reference.repository, path);
    is_match.then_some(Closeness { path: path.len(), exact_host: !host.contains('*') })
}

fn matches_host(pattern: &str, host: &str) -> bool {
    pattern.split('.').count() == host.split('.').count()
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, label)| glob_match(pattern, label))
}

/// Whether `path` is a prefix of `repository` that ends where a component ends.
fn is_below(repository: &str, path: &str) -> bool {
    path.is_empty()
        || repository
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_entry_counts() {
        let keys = [
            "https://index.docker.io/v1/",
            "*.example.com",
            "a.example.com",
            "a.example.com/team",
            "b.io:5000/v2/",
            "*.ecr.*.cloud.com",
            "app*.k8s.io",
        ];
        let entries: BTreeMap<String, &str> =
            keys.into_iter().map(|key| (key.to_owned(), key)).collect();
        for (name, expected) in [
            ("busybox", Some("https://index.docker.io/v1/")),
            ("a.example.com/app", Some("a.example.com")),
            ("a.example.com/team/app", Some("a.example.com/team")),
            ("a.example.com/teams/app", Some("a.example.com")),
            ("b.example.com/team/app", Some("*.example.com")),
            ("x.b.example.com/app", None),
            ("1.ecr.eu.cloud.com/app", Some("*.ecr.*.cloud.com")),
            ("app7.k8s.io/x", Some("app*.k8s.io")),
            ("apps.x.k8s.io/x", None),
            ("b.io:5000/app", Some("b.io:5000/v2/")),
            ("b.io/app", None),
        ] {
            assert_eq!(
                closest(&entries, &Reference::parse(name).unwrap()).copied(),
                expected,
                "{name}"
            );
        }
    }
}
