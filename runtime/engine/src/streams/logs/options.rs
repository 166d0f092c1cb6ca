//! What a client wants of a log.

use std::collections::BTreeMap;

/// What a client asked for.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    /// Leaves out the records before the first one of this time, in nanoseconds since the epoch.
    pub since: Option<i64>,
    /// Ends before the first record that is later, in nanoseconds since the epoch.
    pub until: Option<i64>,
    /// The last so many records only. `None` means all of them.
    pub tail: Option<u64>,
    /// Puts the time in front of each record.
    pub timestamps: bool,
    /// Puts these attributes in front of each record. `None` if no details were asked for.
    pub details: Option<BTreeMap<String, String>>,
    /// The container has a terminal: the stream has no frames, and lines end with CR and LF.
    pub tty: bool,
}
