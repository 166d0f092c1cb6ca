//! What the processes of a container hold: descriptors, sockets, a limit.

use std::{fs, path::PathBuf};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Processes {
    pub count: u64,
    pub descriptors: u64,
    pub sockets: u64,
    /// Of the first one, descriptors at most; absent without a limit.
    pub max_open_files: Option<u64>,
}

/// Processes that end meanwhile hold nothing. Reads every descriptor's link: for metrics, not for stats.
pub(super) fn look(pids: &[u32], first: u32) -> Processes {
    let mut found = Processes {
        count: pids.len() as u64,
        max_open_files: open_files(&fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default()),
        ..Processes::default()
    };
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let link: PathBuf = fs::read_link(entry.path()).unwrap_or_default();
            found.descriptors += 1;
            found.sockets += u64::from(link.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        }
    }
    found
}

/// proc_pid_limits(5): name, soft limit, hard limit, unit.
fn open_files(limits: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_looked_at_as_it_is() {
        let own = std::process::id();
        let before = look(&[own], own);
        assert!(before.count == 1 && before.descriptors > 0 && before.max_open_files.is_some());
        assert_eq!(open_files("Max open files            unlimited            unlimited            files"), None);
        assert_eq!(look(&[], 0), Processes::default());
    }
}
