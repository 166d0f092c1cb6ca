//! `--NAME=VALUE` before the arguments of an instruction.

use crate::{
    error::{Error, Result},
    suggest::suggest,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Switch,
    Text,
    /// Text, as often as one likes.
    Texts,
}

/// The flags of one instruction.
#[derive(Debug)]
pub(crate) struct Flags {
    /// Names without `--`, and their values, in the order in which they stand.
    given: Vec<(&'static str, String)>,
}

impl Flags {
    /// Reads the flags of an instruction that knows these ones.
    ///
    /// # Errors
    /// In dockerd's words: unknown, twice, without the value that it wants.
    pub(crate) fn parse(given: &[String], known: &[(&'static str, Kind)]) -> Result<Self> {
        let mut flags = Self { given: Vec::new() };
        for text in given {
            let (flag, value) = match text.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (text.as_str(), None),
            };
            let name = flag.strip_prefix("--").unwrap_or(flag);
            let Some((name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                let names: Vec<&str> = known.iter().map(|(known, _)| *known).collect();
                return Err(Error(suggest(format!("unknown flag: {flag}"), name, &names)));
            };
            if *kind != Kind::Texts && flags.text(name).is_some() {
                return Err(Error(format!("duplicate flag specified: {flag}")));
            }
            flags.given.push((name, checked(flag, *kind, value)?));
        }
        Ok(flags)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// As `text`, but empty if it is not there.
    pub(crate) fn text_or_empty(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        self.given.iter().filter(|(given, _)| *given == name).map(|(_, v)| v.clone()).collect()
    }

    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "true")
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.given.iter().map(|(name, _)| (*name).to_owned()).collect()
    }
}

fn checked(flag: &str, kind: Kind, value: Option<&str>) -> Result<String> {
    let missing = || Error(format!("missing a value on flag: {flag}"));
    match (kind, value) {
        (Kind::Switch, None) => Ok("true".to_owned()),
        (Kind::Switch, Some("")) | (_, None) => Err(missing()),
        (Kind::Switch, Some(value)) => match value.to_lowercase().as_str() {
            value @ ("true" | "false") => Ok(value.to_owned()),
            _ => Err(Error(format!("expecting boolean value for flag {flag}, not: {value}"))),
        },
        (Kind::Text | Kind::Texts, Some(value)) => Ok(value.to_owned()),
    }
}
