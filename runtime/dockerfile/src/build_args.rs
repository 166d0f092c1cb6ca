//! Build arguments: what the client gives, what `ARG` lets in, and where.

use std::collections::{BTreeMap, BTreeSet};

use crate::variables::Variables;

/// These need no `ARG`, and leave no trace in the image unless there is one.
const PREDEFINED: [&str; 10] = [
    "ALL_PROXY",
    "FTP_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "ftp_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// The arguments of a build, as one place in the Dockerfile sees them.
#[derive(Clone, Debug, Default)]
pub struct BuildArgs {
    /// Those of the client. Without a value, it only names one.
    given: BTreeMap<String, Option<String>>,
    /// `ARG` before the first `FROM`, with the defaults.
    meta: BTreeMap<String, Option<String>>,
    /// `ARG` of this stage, with the defaults.
    stage: BTreeMap<String, Option<String>>,
    /// Every `ARG` that there was.
    consumed: BTreeSet<String>,
}

impl BuildArgs {
    pub fn new(given: BTreeMap<String, Option<String>>) -> Self {
        Self { given, ..Self::default() }
    }

    /// `ARG` before the first `FROM`. Its value is expanded with [`BuildArgs::for_meta_args`].
    pub fn add_meta(&mut self, key: &str, default: Option<&str>) {
        self.add(key, default);
        self.meta.insert(key.to_owned(), default.map(str::to_owned));
    }

    /// `ARG` in a stage.
    pub fn add(&mut self, key: &str, default: Option<&str>) {
        self.stage.insert(key.to_owned(), default.map(str::to_owned));
        self.consumed.insert(key.to_owned());
    }

    /// The arguments as the next stage sees them.
    #[must_use]
    pub fn begin_stage(&self) -> Self {
        Self { stage: BTreeMap::new(), ..self.clone() }
    }

    /// What a stage has consumed is no longer unused.
    pub fn end_stage(&mut self, stage: &Self) {
        self.consumed.extend(stage.consumed.iter().cloned());
    }

    /// The variables in `ARG` before the first `FROM`.
    pub fn for_meta_args(&self) -> Variables {
        Variables::of(self.all(&self.stage))
    }

    /// The variables in `FROM`.
    pub fn for_from(&self) -> Variables {
        Variables::of(self.all(&self.meta))
    }

    /// Those that instructions of the stage and the commands of `RUN` see, as `KEY=VALUE`, sorted.
    /// A variable of the image has precedence, so those in `env` are left out.
    pub fn beside(&self, env: &[String]) -> Vec<String> {
        let key = |entry: &str| entry.split_once('=').map_or(entry, |(key, _)| key).to_owned();
        let own: BTreeSet<String> = env.iter().map(|entry| key(entry)).collect();
        self.all(&self.stage).into_iter().filter(|entry| !own.contains(&key(entry))).collect()
    }

    /// Of these entries, those that are part of what a `RUN` is: not the predefined ones, unless an
    /// `ARG` names them.
    pub fn recorded<'e>(&self, entries: &'e [String]) -> Vec<&'e str> {
        let is_recorded = |entry: &&str| {
            let key = entry.split_once('=').map_or(*entry, |(key, _)| key);
            self.stage.contains_key(key) || !PREDEFINED.contains(&key)
        };
        entries.iter().map(String::as_str).filter(is_recorded).collect()
    }

    /// dockerd's line for the arguments that no `ARG` asked for, if there are any.
    pub fn unused(&self) -> Option<String> {
        let unused: Vec<&str> = self
            .given
            .keys()
            .map(String::as_str)
            .filter(|key| !self.consumed.contains(*key) && !PREDEFINED.contains(key))
            .collect();
        let names = unused.join(" ");
        (!unused.is_empty())
            .then(|| format!("[Warning] One or more build-args [{names}] were not consumed\n"))
    }

    fn all(&self, allowed: &BTreeMap<String, Option<String>>) -> Vec<String> {
        let keys: BTreeSet<&str> = allowed.keys().map(String::as_str).chain(PREDEFINED).collect();
        let entry = |key: &str| {
            let value = self.value(key, allowed)?;
            Some(format!("{key}={value}"))
        };
        keys.into_iter().filter_map(entry).collect()
    }

    /// The client's value, else the default, else that of an `ARG` before the first `FROM`.
    fn value<'a>(
        &'a self,
        key: &str,
        allowed: &'a BTreeMap<String, Option<String>>,
    ) -> Option<&'a str> {
        [&self.given, allowed, &self.meta]
            .into_iter()
            .find_map(|values| values.get(key).and_then(Option::as_deref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(entries: &[(&str, Option<&str>)]) -> BuildArgs {
        let pair =
            |(key, value): &(&str, Option<&str>)| ((*key).to_owned(), value.map(str::to_owned));
        BuildArgs::new(entries.iter().map(pair).collect())
    }

    #[test]
    fn arguments_are_seen_where_arg_names_them() {
        let mut args = given(&[("a", Some("given")), ("n", None)]);
        args.add_meta("a", Some("default"));
        args.add_meta("m", Some("meta"));
        let mut stage = args.begin_stage();
        assert_eq!(stage.beside(&[]), [""; 0]);
        for (key, default) in [("a", Some("x")), ("m", None), ("n", None), ("o", Some("own"))] {
            stage.add(key, default);
        }
        assert_eq!(stage.beside(&[]), ["a=given", "m=meta", "o=own"]);
        assert_eq!(stage.beside(&["o=env".to_owned()]), ["a=given", "m=meta"]);
        assert_eq!(args.begin_stage().beside(&[]), [""; 0]);
    }

    #[test]
    fn proxies_are_predefined_and_leave_no_trace() {
        let args = given(&[("HTTP_PROXY", Some("p")), ("x", Some("1"))]);
        let mut stage = args.begin_stage();
        let entries = stage.beside(&[]);
        assert_eq!(entries, ["HTTP_PROXY=p"]);
        assert_eq!(stage.recorded(&entries), [""; 0]);
        stage.add("HTTP_PROXY", None);
        assert_eq!(stage.recorded(&entries), ["HTTP_PROXY=p"]);
        let unused = "[Warning] One or more build-args [x] were not consumed\n";
        assert_eq!(stage.unused().as_deref(), Some(unused));
    }

    #[test]
    fn what_a_stage_consumes_is_used() {
        let mut args = given(&[("x", None)]);
        let mut stage = args.begin_stage();
        stage.add("x", None);
        assert!(args.unused().is_some());
        args.end_stage(&stage);
        assert_eq!(args.unused(), None);
    }
}
