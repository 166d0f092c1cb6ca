//! The part of the daemon's configuration that concerns images.

use std::{path::PathBuf, time::Duration};

use berth_base::config::PushCompression;

use crate::credentials::CredentialSources;

#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of `<host>/hosts.toml`.
    pub registry_config: PathBuf,
    pub credentials: CredentialSources,
    pub push_compression: PushCompression,
    /// How long a download may stay below 1 KiB per second before it is tried again.
    pub stall: Duration,
    /// A signature policy in the format of containers-policy.json(5).
    pub signature_policy: Option<PathBuf>,
    /// Patterns for names of images that the kubelet must never remove.
    pub pinned: Vec<String>,
}
