//! Runtime handlers, which the kubelet's RuntimeClass names: berth itself, and other OCI runtimes that the configuration tells of.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    config,
    error::{Error, Result},
};

/// Names of berth's own: the default, its name, and what clusters that come from elsewhere have in their RuntimeClass objects.
const OWN: [&str; 4] = ["", "berth", "runc", "test-handler"];

/// By name: the program of an OCI runtime, or none where berth makes the containers itself.
#[derive(Clone, Debug)]
pub(crate) struct Handlers(BTreeMap<String, Option<PathBuf>>);

impl Handlers {
    pub(crate) fn new(configured: &BTreeMap<String, config::Handler>) -> Self {
        let own = OWN.iter().map(|name| ((*name).to_owned(), None));
        let others = configured.iter().map(|(name, handler)| (name.clone(), handler.oci_runtime.clone()));
        Self(own.chain(others).collect())
    }

    /// The OCI runtime of a handler that has one.
    ///
    /// # Errors
    /// `InvalidArgument`: there is no such handler.
    pub(crate) fn oci_runtime(&self, name: &str) -> Result<Option<&Path>> {
        let known = || self.0.keys().filter(|known| !known.is_empty()).cloned().collect::<Vec<_>>().join(", ");
        let found = self.0.get(name).map(Option::as_deref);
        found.ok_or_else(|| Error::invalid(format!("no runtime handler {name:?}; there is {}", known())))
    }

    /// Every name, and whether berth itself is behind it.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, bool)> {
        self.0.iter().map(|(name, oci_runtime)| (name.as_str(), oci_runtime.is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_name_wins_and_an_unknown_one_is_told_what_there_is() {
        let crun = config::Handler { oci_runtime: Some("/usr/bin/crun".into()) };
        let own = config::Handler { oci_runtime: None };
        let handlers = Handlers::new(&[("runc".to_owned(), crun), ("plain".to_owned(), own)].into());
        assert_eq!(handlers.oci_runtime("runc").unwrap(), Some(Path::new("/usr/bin/crun")));
        assert_eq!(handlers.oci_runtime("plain").unwrap(), None);
        assert_eq!(handlers.oci_runtime("").unwrap(), None);
        assert!(handlers.oci_runtime("kata").unwrap_err().message.contains("berth, plain, runc"));
    }
}
