//! State as a pure function of what is found in a container's directory. Nothing else decides it: not at start-up, not after a
//! shim was killed, not after a launch.

use berth_shim::record::{End, Exited, Started};

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Findings<'a> {
    pub exited: Option<Exited>,
    /// A shim holds the lock.
    pub locked: bool,
    pub started: Option<Started>,
    pub boot_id: &'a str,
}

/// What it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Exited(Exited),
    /// A shim keeps it: connect.
    Running,
    /// A launch is under way: wait for one file or the other.
    Launching,
    /// Nobody keeps it: kill what is left of it, then record this end.
    Lost(End),
    Created,
}

pub(crate) fn judge(found: &Findings<'_>) -> Verdict {
    match (&found.exited, found.locked, &found.started) {
        (Some(exited), ..) => Verdict::Exited(exited.clone()),
        (None, true, Some(_)) => Verdict::Running,
        (None, true, None) => Verdict::Launching,
        (None, false, Some(started)) if started.boot_id == found.boot_id => Verdict::Lost(End::ShimLost),
        (None, false, Some(_)) => Verdict::Lost(End::Reboot),
        (None, false, None) => Verdict::Created,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_contract() {
        let exited = Exited { end: End::Code(3), at: 1, oom: false };
        let started =
            |boot: &str| Some(Started { pid: 1, start_time: 2, boot_id: boot.into(), at: 3, user: Default::default() });
        for (exit, locked, start, verdict) in [
            (Some(exited.clone()), false, started("now"), Verdict::Exited(exited.clone())),
            (Some(exited.clone()), true, started("now"), Verdict::Exited(exited.clone())),
            (Some(exited.clone()), false, None, Verdict::Exited(exited)),
            (None, true, started("now"), Verdict::Running),
            (None, true, None, Verdict::Launching),
            (None, false, started("now"), Verdict::Lost(End::ShimLost)),
            (None, false, started("before"), Verdict::Lost(End::Reboot)),
            (None, false, None, Verdict::Created),
        ] {
            let found = Findings { exited: exit, locked, started: start, boot_id: "now" };
            assert_eq!(judge(&found), verdict, "{found:?}");
        }
    }
}
