//! The query of a request.

use std::str::FromStr;

use http::StatusCode;

use crate::http::error::{Failure, Result};

#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of `name`; empty if there is none.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// All values of `name`.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether `name` is set, and not to one of the words that dockerd takes for false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let value = self.get(name).trim().to_ascii_lowercase();
        !["", "0", "no", "false", "none"].contains(&value.as_str())
    }

    /// A number; `None` if it is absent.
    ///
    /// # Errors
    /// 500 for what is not one, as dockerd answers it in Go's words.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("strconv.Atoi: parsing \"{text}\": invalid syntax"),
                )
            }),
        }
    }
}
