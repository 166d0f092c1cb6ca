//! How many files and processes there may be.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::finding::Finding;

/// A container takes a descriptor, and some more while it starts.
const FEW_FILES: u64 = 65_536;
/// 250 pods with some hundred threads each.
const FEW_PROCESSES: u64 = 65_536;

pub(crate) struct Facts {
    /// The hard limit of open files; `None` is no limit.
    files: Option<u64>,
    /// Of /proc/sys/kernel/pid_max.
    processes: u64,
}

pub(crate) fn look() -> Facts {
    let processes = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    Facts {
        files: getrlimit(Resource::Nofile).maximum,
        processes: processes.trim().parse().unwrap_or(u64::MAX),
    }
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let files = match facts.files {
        Some(files) if files < FEW_FILES => Finding::warning(
            "open files",
            format!("{files} at most for what this shell starts"),
            "LimitNOFILE=1048576 in berthd's unit, or ulimit -Hn 1048576",
        ),
        Some(files) => Finding::ok("open files", format!("{files}")),
        None => Finding::ok("open files", "without a limit".to_owned()),
    };
    let processes = match facts.processes {
        ..FEW_PROCESSES => Finding::warning(
            "processes",
            format!("{} at most on this machine", facts.processes),
            "sysctl -w kernel.pid_max=4194304",
        ),
        _ => Finding::ok("processes", format!("{}", facts.processes)),
    };
    vec![files, processes]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{Ok, Warning};

    #[test]
    fn few_are_a_warning() {
        for (files, processes, expected) in [
            (None, 4_194_304, [Ok, Ok]),
            (Some(1_048_576), 65_536, [Ok, Ok]),
            (Some(1024), 32_768, [Warning, Warning]),
        ] {
            let found = judge(&Facts { files, processes });
            assert_eq!([found[0].verdict, found[1].verdict], expected);
        }
    }
}
