//! The report of a launch, which the daemon reads from standard output.

use std::{fs::OpenOptions, io::Write};

use berth_shim::record::Report;

use crate::sys;

/// Writes the report as one line of JSON and gives standard output up, so that the daemon, which
/// reads to end-of-file, goes on.
pub(crate) fn report(report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    // Nobody reads it if the daemon was killed meanwhile. The next one finds started.json or
    // exit.json instead.
    let _ = std::io::stdout().write_all(&line).and_then(|()| std::io::stdout().flush());
    // Replaced and not closed: the next descriptor that is opened must not become standard output.
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = sys::replace_stdio(&null, 1);
    }
}
