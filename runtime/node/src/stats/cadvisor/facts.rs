//! What a metric is, and what its values are made from.

use crate::{
    cgroup::{Details, Resources, Usage},
    container::DiskUsage,
    stats::{network::Interface, processes::Processes},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// The labels of every metric, before its own.
pub(super) const SHARED_LABELS: [&str; 6] =
    ["container", "id", "image", "name", "namespace", "pod"];

#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    own_labels: &'static [&'static str],
    read: fn(&Facts<'_>) -> Values,
}

/// The values of the metric's own labels, and the number, for each line of a metric.
pub(super) type Values = Vec<(Vec<String>, u64)>;

/// What is known about a container, or about a pod, which has no files and no limits of its own.
pub(super) struct Facts<'a> {
    pub at: i64,
    pub started_at: Option<i64>,
    pub usage: &'a Usage,
    pub details: Option<Details>,
    pub processes: Processes,
    pub disk: Option<Disk<'a>>,
    pub resources: Option<Resources>,
    pub interfaces: &'a [Interface],
}

/// What a container wrote, and the filesystem that it wrote to.
pub(super) struct Disk<'a> {
    pub used: &'a DiskUsage,
    pub filesystem: Filesystem,
}

pub(super) struct Filesystem {
    pub device: String,
    pub bytes: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

pub(super) const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help, own_labels: &[], read: |_| Vec::new() }
}

pub(super) const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { kind: Kind::Gauge, ..counter(name, help) }
}

impl Metric {
    pub(super) const fn labelled(self, own_labels: &'static [&'static str]) -> Self {
        Self { own_labels, ..self }
    }

    pub(super) const fn values(self, read: fn(&Facts<'_>) -> Values) -> Self {
        Self { read, ..self }
    }

    /// The names of all labels, in the order of their values.
    pub fn labels(&self) -> Vec<String> {
        SHARED_LABELS.iter().chain(self.own_labels).map(|label| (*label).to_owned()).collect()
    }

    pub(super) fn read(&self, facts: &Facts<'_>) -> Values {
        (self.read)(facts)
    }
}
