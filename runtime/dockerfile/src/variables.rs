//! The variables of a place in a Dockerfile.

use std::collections::HashMap;

/// What `$NAME` stands for. A name that is not there is unset.
#[derive(Clone, Debug, Default)]
pub struct Variables(HashMap<String, String>);

impl Variables {
    /// From entries `NAME=VALUE`; the last one of a name counts.
    pub fn of<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Self {
        let pair = |entry: S| {
            let (key, value) = entry.as_ref().split_once('=').unwrap_or((entry.as_ref(), ""));
            (key.to_owned(), value.to_owned())
        };
        Self(entries.into_iter().map(pair).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}
