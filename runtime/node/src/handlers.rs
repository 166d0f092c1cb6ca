//! Runtime handlers, which Kubernetes' RuntimeClass objects name: berth itself, and the OCI
//! runtimes of the configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use berth_base::{
    config,
    error::{Error, Result},
};

/// The handlers that berth itself is: that of pods without a RuntimeClass, its own name, the one
/// that RuntimeClass objects made for containerd or CRI-O often have, and that of Kubernetes'
/// tests.
const OWN: [&str; 4] = ["", "berth", "runc", "test-handler"];

/// By name: the program of an OCI runtime, or none if berth makes the containers itself.
#[derive(Clone, Debug)]
pub struct Handlers(BTreeMap<String, Option<PathBuf>>);

impl Handlers {
    pub fn new(configured: &BTreeMap<String, config::Handler>) -> Self {
        // The configuration comes last and wins: it may give "runc" to runc.
        let own = OWN.iter().map(|name| ((*name).to_owned(), None));
        let others =
            configured.iter().map(|(name, handler)| (name.clone(), handler.oci_runtime.clone()));
        Self(own.chain(others).collect())
    }

    /// The OCI runtime of a handler; `None` for berth itself.
    ///
    /// # Errors
    /// `InvalidArgument`: there is no such handler.
    pub fn oci_runtime(&self, name: &str) -> Result<Option<&Path>> {
        match self.0.get(name) {
            Some(oci_runtime) => Ok(oci_runtime.as_deref()),
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> =
            self.0.keys().map(String::as_str).filter(|known| !known.is_empty()).collect();
        Error::invalid(format!("no runtime handler {name:?}; there is {}", known.join(", ")))
    }

    /// All names, and whether berth itself is behind each.
    pub fn all(&self) -> impl Iterator<Item = (&str, bool)> {
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
        let handlers =
            Handlers::new(&[("runc".to_owned(), crun), ("plain".to_owned(), own)].into());
        assert_eq!(handlers.oci_runtime("runc").unwrap(), Some(Path::new("/usr/bin/crun")));
        assert_eq!(handlers.oci_runtime("plain").unwrap(), None);
        assert_eq!(handlers.oci_runtime("").unwrap(), None);
        assert!(handlers.oci_runtime("kata").unwrap_err().message.contains("berth, plain, runc"));
    }
}
