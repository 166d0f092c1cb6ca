//! What the processes of a container hold: descriptors, sockets, and the limit on them.

use std::fs;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Processes {
    pub count: u64,
    pub descriptors: u64,
    pub sockets: u64,
    /// How many descriptors the container's first process may have; absent without a limit.
    pub max_open_files: Option<u64>,
}

/// Counts what `pids` hold; `first` is the container's first process. It reads the link of every
/// descriptor, so it is for metrics and not for stats, which the kubelet asks for every ten
/// seconds.
pub(super) fn read(pids: &[u32], first: u32) -> Processes {
    let limits = fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default();
    let mut found = Processes {
        count: pids.len() as u64,
        max_open_files: max_open_files(&limits),
        ..Processes::default()
    };
    for pid in pids {
        // A process that has ended meanwhile holds nothing.
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            found.descriptors += 1;
            // proc_pid_fd(5): `socket:[inode]`
            let is_socket = target.as_os_str().as_encoded_bytes().starts_with(b"socket:");
            found.sockets += u64::from(is_socket);
        }
    }
    found
}

/// The soft limit; proc_pid_limits(5) has name, soft limit, hard limit and unit in a line.
fn max_open_files(limits: &str) -> Option<u64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_holds_is_counted() {
        let own = std::process::id();
        let before = read(&[own], own);
        assert!(before.count == 1 && before.descriptors > 0 && before.max_open_files.is_some());
        assert_eq!(
            max_open_files(
                "Max open files            unlimited            unlimited            files"
            ),
            None
        );
        assert_eq!(read(&[], 0), Processes::default());
    }
}
