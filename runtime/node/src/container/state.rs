//! The states of a container, and how its directory is read.
//!
//! `judge` is a pure function of what is found there, and the only thing that decides a state: at
//! start-up, after a launch, and after a shim was killed.

use std::{path::Path, sync::Arc};

use berth_shim::{
    layout as shim_layout,
    record::{self, End, Exited, Found, Started},
};

use crate::shim::{self, Connection};

/// What statuses and lists say about a container.
#[derive(Clone, Debug)]
pub enum State {
    /// The disk could not be read or the shim not be reached; the container's processes may be
    /// running.
    Unknown {
        why: String,
    },
    Created,
    Running {
        started: Arc<Started>,
        /// Absent where the shim's socket is gone: the container then runs on, but nothing can be
        /// executed in it, and it is stopped by force.
        connection: Option<Arc<Connection>>,
    },
    Exited {
        /// Absent where the program never ran.
        started: Option<Arc<Started>>,
        exited: Exited,
    },
}

impl State {
    /// The record of its start, for as long as one is known.
    pub fn started(&self) -> Option<&Arc<Started>> {
        match self {
            Self::Running { started, .. } => Some(started),
            Self::Exited { started, .. } => started.as_ref(),
            Self::Unknown { .. } | Self::Created => None,
        }
    }
}

/// Why a container ended, as the kubelet shows it: a reason in CamelCase, and a message.
pub fn reason(exited: &Exited) -> (&'static str, String) {
    match &exited.end {
        End::NotStarted(failure) => ("StartError", format!("cannot start: {failure}")),
        _ if exited.oom => ("OOMKilled", String::new()),
        End::Code(0) => ("Completed", String::new()),
        End::Code(_) | End::Signal(_) => ("Error", String::new()),
        End::ShimLost => {
            ("Error", "the container's shim was killed, and the container with it".to_owned())
        }
        End::Reboot => ("Error", "the node was rebooted".to_owned()),
        End::RecordLost => {
            ("Error", "it has ended, and nobody knows how: its record is damaged".to_owned())
        }
    }
}

/// Reads a container's directory, and that of its socket, and judges what is found.
///
/// # Errors
/// A file is there and cannot be read.
pub fn read(
    directory: &Path,
    socket_directory: &Path,
    boot_id: &str,
) -> anyhow::Result<(Verdict, Option<Started>)> {
    match read_both(directory, socket_directory, boot_id) {
        // A disk that has failed keeps no container from having ended: where it takes nothing, the
        // last words are beside the socket, which is in memory.
        Err(error) => match record::read(&socket_directory.join(shim_layout::EXITED)) {
            Ok(Found::Record(exited)) => Ok((Verdict::Exited(exited), None)),
            _ => Err(error),
        },
        read => read,
    }
}

fn read_both(
    directory: &Path,
    socket_directory: &Path,
    boot_id: &str,
) -> anyhow::Result<(Verdict, Option<Started>)> {
    // The lock comes first. A shim writes its last file before it gives the lock up, so that a lock
    // found free means that the files say all there will ever be.
    let locked = shim::is_alive(directory)?;
    let mut exited = record::read::<Exited>(&directory.join(shim_layout::EXITED))?;
    if !matches!(exited, Found::Record(_)) {
        let beside = record::read::<Exited>(&socket_directory.join(shim_layout::EXITED))?;
        exited = if beside == Found::Absent { exited } else { beside };
    }
    let started = record::read::<Started>(&directory.join(shim_layout::STARTED))?;
    let rebooted = is_of_earlier_boot(socket_directory);
    let verdict = judge(&Findings { exited, locked, started: started.clone(), boot_id, rebooted });
    Ok((verdict, started.record()))
}

/// Whether a container was made in an earlier boot, going by the directory of its socket. That is
/// made with the container, and is in memory, so that a reboot takes it along. Once the container's
/// state has been read after a reboot, start-up makes it again.
pub(super) fn is_of_earlier_boot(socket_directory: &Path) -> bool {
    matches!(socket_directory.try_exists(), Ok(false))
}

/// What a container's directory holds.
#[derive(Clone, Debug)]
struct Findings<'a> {
    exited: Found<Exited>,
    /// Whether a shim holds the lock.
    locked: bool,
    started: Found<Started>,
    boot_id: &'a str,
    /// Whether the directory of its socket went with an earlier boot.
    rebooted: bool,
}

/// What the findings mean, and what is to be done about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Exited(Exited),
    /// A shim supervises it: connect to that.
    Running,
    /// A launch is under way, or its record was lost: wait for either file, and ask the shim.
    Launching,
    /// No shim supervises it any more: kill what is left of it, then record this end.
    Lost(End),
    Created,
}

fn judge(found: &Findings<'_>) -> Verdict {
    match (&found.exited, found.locked, &found.started) {
        // Even where the lock is held: the shim writes its last record before it exits.
        (Found::Record(exited), ..) => Verdict::Exited(exited.clone()),
        // While its shim lives it has not ended, and what has the record's name is not of the shim.
        (_, true, Found::Record(_)) => Verdict::Running,
        (_, true, Found::Absent | Found::Damaged) => Verdict::Launching,
        // Only the end of a container writes this record: it must not be started a second time.
        (Found::Damaged, false, _) => Verdict::Lost(End::RecordLost),
        // Its processes went with the boot that they were started in, and so may have the PIDs.
        (Found::Absent, false, Found::Record(started)) if started.boot_id != found.boot_id => {
            Verdict::Lost(End::Reboot)
        }
        // The power was lost before the record of its start was on the disk.
        (Found::Absent, false, Found::Damaged) if found.rebooted => Verdict::Lost(End::Reboot),
        // A damaged record exists all the same, so the program did run. To judge Created would
        // allow a second StartContainer, and the program would run twice.
        (Found::Absent, false, Found::Record(_) | Found::Damaged) => Verdict::Lost(End::ShimLost),
        (Found::Absent, false, Found::Absent) => Verdict::Created,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_contract() {
        let exited = Exited { end: End::Code(3), at: 1, oom: false };
        let started = |boot: &str| {
            Found::Record(Started {
                pid: 1,
                start_time: 2,
                boot_id: boot.into(),
                at: 3,
                user: Default::default(),
            })
        };
        for (exit, locked, start, verdict) in [
            (Found::Record(exited.clone()), false, started("now"), Verdict::Exited(exited.clone())),
            (Found::Record(exited.clone()), true, started("now"), Verdict::Exited(exited.clone())),
            (Found::Record(exited.clone()), false, Found::Absent, Verdict::Exited(exited)),
            (Found::Absent, true, started("now"), Verdict::Running),
            (Found::Absent, true, Found::Absent, Verdict::Launching),
            (Found::Absent, true, Found::Damaged, Verdict::Launching),
            (Found::Absent, false, started("now"), Verdict::Lost(End::ShimLost)),
            (Found::Absent, false, started("before"), Verdict::Lost(End::Reboot)),
            (Found::Absent, false, Found::Damaged, Verdict::Lost(End::ShimLost)),
            (Found::Absent, false, Found::Absent, Verdict::Created),
            (Found::Damaged, true, started("now"), Verdict::Running),
            (Found::Damaged, true, Found::Absent, Verdict::Launching),
            (Found::Damaged, false, started("now"), Verdict::Lost(End::RecordLost)),
            (Found::Damaged, false, Found::Absent, Verdict::Lost(End::RecordLost)),
        ] {
            let found =
                Findings { exited: exit, locked, started: start, boot_id: "now", rebooted: false };
            assert_eq!(judge(&found), verdict, "{found:?}");
        }
        for (locked, start, verdict) in [
            (false, Found::Damaged, Verdict::Lost(End::Reboot)),
            (true, Found::Damaged, Verdict::Launching),
            (false, Found::Absent, Verdict::Created),
        ] {
            let found = Findings {
                exited: Found::Absent,
                locked,
                started: start,
                boot_id: "now",
                rebooted: true,
            };
            assert_eq!(judge(&found), verdict, "{found:?}");
        }
    }
}
