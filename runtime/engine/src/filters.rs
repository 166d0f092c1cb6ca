//! The `filters` of lists, prunes and events. Values of one key are alternatives, keys must all
//! match; which way a value matches is up to the key, and so to the caller.
//!
//! Two forms are in use: `{"status":{"exited":true}}` by the docker CLI, `{"status":["exited"]}` by
//! docker-py and dockerode.

use std::collections::BTreeMap;

use berth_base::error::{Error, Result};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::time::parse_filter_time;

/// The longest text in bytes, and the most values. A client that names each of a thousand
/// containers stays below both.
const MAX_TEXT: usize = 256 << 10;
const MAX_VALUES: usize = 4096;
/// The most bytes that a compiled expression may have.
const MAX_EXPRESSION: usize = 256 << 10;

/// The filters of a request, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Values>);

/// The values of one key. One with `false` is there, but is no exact match, as in dockerd.
type Values = BTreeMap<String, bool>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Sets(BTreeMap<String, Option<Values>>),
    Lists(BTreeMap<String, Option<Vec<String>>>),
}

impl Filters {
    /// Reads the value of `filters` in a query. An empty one has no filters.
    ///
    /// # Errors
    /// `InvalidArgument` if it is in neither form or too large.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let form = (text.len() <= MAX_TEXT).then(|| serde_json::from_str(text).ok()).flatten();
        let filters = match form.ok_or_else(|| Error::invalid("invalid filter"))? {
            Form::Sets(sets) => {
                sets.into_iter().map(|(key, values)| (key, values.unwrap_or_default())).collect()
            }
            Form::Lists(lists) => lists
                .into_iter()
                .map(|(key, list)| (key, list.into_iter().flatten().map(|v| (v, true)).collect()))
                .collect(),
        };
        let filters = Self(filters);
        if filters.0.values().map(BTreeMap::len).sum::<usize>() > MAX_VALUES {
            return Err(Error::invalid("invalid filter"));
        }
        Ok(filters)
    }

    /// Refuses keys that the request does not know.
    ///
    /// # Errors
    /// `InvalidArgument` with the first one.
    pub fn accept(&self, keys: &[&str]) -> Result<()> {
        match self.0.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(unknown) => Err(Error::invalid(format!("invalid filter '{unknown}'"))),
            None => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is such a key, even without values.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The values of a key, sorted.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flat_map(|values| values.keys().map(String::as_str))
    }

    /// Whether one of the values is `source`, or there is none to match.
    pub fn matches_exactly(&self, key: &str, source: &str) -> bool {
        match self.0.get(key) {
            Some(values) if !values.is_empty() => values.get(source) == Some(&true),
            _ => true,
        }
    }

    /// Whether one of the values is `source` or begins it, or there is none to match.
    pub fn matches_prefix(&self, key: &str, source: &str) -> bool {
        self.matches_exactly(key, source)
            || self.values(key).any(|prefix| source.starts_with(prefix))
    }

    /// The values of a key as expressions that may match anywhere, such as those of `name` and
    /// `id`. Made once for a list, since compiling is far slower than matching.
    pub fn expressions(&self, key: &str) -> Expressions<'_> {
        let compiled = self.values(key).map(Expression::new).collect();
        Expressions { filters: self, key: key.to_owned(), compiled }
    }

    /// Whether all values of a key, `name` or `name=value`, are among `labels`, or there is none.
    pub fn matches_labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|label| label == value),
            None => labels.contains_key(wanted),
        })
    }

    /// As `matches_labels` with `label`, and none of those with `label!`: the filters of prunes.
    pub fn matches_labels_of_prune(&self, labels: &BTreeMap<String, String>) -> bool {
        let is_excluded = self.contains("label!") && self.matches_labels("label!", labels);
        self.matches_labels("label", labels) && !is_excluded
    }

    /// The value of a key that is true or false. `None` if it is not there.
    ///
    /// # Errors
    /// `InvalidArgument` if it is neither or both.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(values) = self.0.get(key) else { return Ok(None) };
        let has = |words: [&str; 2]| words.iter().any(|word| values.get(*word) == Some(&true));
        match (has(["0", "false"]), has(["1", "true"])) {
            (true, false) => Ok(Some(false)),
            (false, true) => Ok(Some(true)),
            _ if values.is_empty() => Err(Error::invalid(format!("invalid filter '{key}'"))),
            _ => {
                let all: Vec<&str> = values.keys().map(String::as_str).collect();
                Err(Error::invalid(format!("invalid filter '{key}=[{}]'", all.join(" "))))
            }
        }
    }

    /// The time of `until`, in nanoseconds since the epoch. Durations count back from `now`.
    ///
    /// # Errors
    /// There are several, or it is not a time.
    pub fn until(&self, now: i64) -> std::result::Result<Option<i64>, BadUntil> {
        let mut values = self.values("until");
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(BadUntil::Several);
        }
        match parse_filter_time(value, now) {
            Ok(time) => Ok(Some(time)),
            Err(error) => Err(BadUntil::NoTime(error.message)),
        }
    }
}

/// Why `until` names no time. Docker has another code for each, which differ by endpoint.
#[derive(Debug, PartialEq, Eq)]
pub enum BadUntil {
    Several,
    /// In words for its user.
    NoTime(String),
}

impl From<BadUntil> for String {
    fn from(why: BadUntil) -> Self {
        match why {
            BadUntil::Several => "more than one until filter specified".to_owned(),
            BadUntil::NoTime(why) => why,
        }
    }
}

/// The values of a key as expressions.
#[derive(Debug)]
pub struct Expressions<'a> {
    filters: &'a Filters,
    key: String,
    compiled: Vec<Expression<'a>>,
}

#[derive(Debug)]
enum Expression<'a> {
    /// Without special characters, which is nearly every one.
    Text(&'a str),
    Regex(Regex),
    /// Not an expression, so that only the exact text matches.
    Invalid,
}

impl Expressions<'_> {
    /// Whether one of the expressions matches `source` or is that text, or there is none to match.
    pub fn matches(&self, source: &str) -> bool {
        self.filters.matches_exactly(&self.key, source)
            || self.compiled.iter().any(|expression| match expression {
                Expression::Text(text) => source.contains(text),
                Expression::Regex(regex) => regex.is_match(source.as_bytes()),
                Expression::Invalid => false,
            })
    }
}

impl<'a> Expression<'a> {
    fn new(text: &'a str) -> Self {
        if !text.contains(|c: char| r"\.+*?()|[]{}^$".contains(c)) {
            return Self::Text(text);
        }
        // Classes such as `\w` are those of ASCII in Go.
        let mut builder = RegexBuilder::new(text);
        builder.unicode(false).size_limit(MAX_EXPRESSION);
        builder.build().map_or(Self::Invalid, Self::Regex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Filters {
        Filters::parse(text).unwrap()
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn both_forms_mean_the_same() {
        let sets = parse(r#"{"status":{"exited":true,"dead":true},"label":{}}"#);
        assert_eq!(sets, parse(r#"{"status":["exited","dead","dead"],"label":[]}"#));
        assert_eq!(sets.values("status").collect::<Vec<_>>(), ["dead", "exited"]);
        for empty in ["", "{}"] {
            assert!(parse(empty).is_empty());
        }
        let nulls = parse(r#"{"name":null}"#);
        assert!(nulls.contains("name") && nulls.matches_exactly("name", "any"));
        for wrong in ["x", "[]", r#"{"a":"b"}"#, r#"{"a":["b"],"c":{"d":true}}"#, r#"{"a":[1]}"#] {
            assert_eq!(Filters::parse(wrong).unwrap_err().message, "invalid filter", "{wrong}");
        }
        let many: Vec<String> = (0..=MAX_VALUES).map(|number| format!("\"{number}\"")).collect();
        assert!(Filters::parse(&format!("{{\"id\":[{}]}}", many.join(","))).is_err());
        assert!(Filters::parse(&" ".repeat(MAX_TEXT + 1)).is_err());
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let filters = parse(r#"{"name":["a"],"nmae":["b"]}"#);
        assert_eq!(filters.accept(&["name"]).unwrap_err().message, "invalid filter 'nmae'");
        assert!(filters.accept(&["name", "nmae"]).is_ok());
    }

    #[test]
    fn values_match_as_their_key_wants() {
        let filters = parse(r#"{"name":["^/we","db"],"id":["abc"],"e":["a("]}"#);
        for (source, exact, prefix, expression) in [
            ("abc", true, true, true),
            ("abcdef", false, true, true),
            ("xabc", false, false, true),
            ("ab", false, false, false),
        ] {
            assert_eq!(filters.matches_exactly("id", source), exact);
            assert_eq!(filters.matches_prefix("id", source), prefix);
            assert_eq!(filters.expressions("id").matches(source), expression);
        }
        let names = filters.expressions("name");
        for (name, expected) in [("/web", true), ("/my-db-1", true), ("/a/web", false)] {
            assert_eq!(names.matches(name), expected, "{name}");
        }
        assert!(filters.expressions("none").matches("anything"));
        assert!(!parse(r#"{"x":{"off":false}}"#).matches_exactly("x", "off"));
        // What is not an expression matches itself only.
        assert!(filters.expressions("e").matches("a(") && !filters.expressions("e").matches("a"));
    }

    #[test]
    fn labels_match_by_key_or_by_value() {
        let own = labels(&[("a", "1"), ("b", "")]);
        for (wanted, expected) in [
            (r#"{}"#, true),
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=1","b="]}"#, true),
            (r#"{"label":["a=2"]}"#, false),
            (r#"{"label":["a","c"]}"#, false),
            (r#"{"label!":["c"]}"#, true),
            (r#"{"label!":["a"]}"#, false),
            (r#"{"label":["a"],"label!":["a=2"]}"#, true),
        ] {
            assert_eq!(parse(wanted).matches_labels_of_prune(&own), expected, "{wanted}");
        }
    }

    #[test]
    fn flags_and_times_are_checked() {
        for (text, expected) in [
            (r#"{}"#, Ok(None)),
            (r#"{"f":["1"]}"#, Ok(Some(true))),
            (r#"{"f":{"false":true}}"#, Ok(Some(false))),
            (r#"{"f":[]}"#, Err("invalid filter 'f'")),
            (r#"{"f":["true","0"]}"#, Err("invalid filter 'f=[0 true]'")),
            (r#"{"f":["yes"]}"#, Err("invalid filter 'f=[yes]'")),
        ] {
            let flag = parse(text).flag("f").map_err(|error| error.message);
            assert_eq!(flag, expected.map_err(str::to_owned), "{text}");
        }
        let second = 1_000_000_000;
        assert_eq!(parse(r#"{"until":["10s"]}"#).until(30 * second).unwrap(), Some(20 * second));
        assert_eq!(parse("{}").until(0).unwrap(), None);
        assert_eq!(parse(r#"{"until":["1s","2s"]}"#).until(0), Err(BadUntil::Several));
        assert!(parse(r#"{"until":["soon"]}"#).until(0).is_err());
    }
}
