//! What `berth-shim` does when it is run: one file for each verb of its command line.

pub(crate) mod pin;
pub(crate) mod probe;
pub(crate) mod run;
