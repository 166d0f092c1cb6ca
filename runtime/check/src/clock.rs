//! The clock: certificates and tokens are refused where it is wrong.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::finding::Finding;

/// Programs that set the clock, as their names are cut by the kernel (proc_pid_comm(5)).
const SETTERS: [&str; 5] = ["chronyd", "ntpd", "systemd-timesyn", "ptp4l", "openntpd"];

pub(crate) struct Facts {
    /// Seconds since the epoch.
    now: u64,
    built: Option<u64>,
    /// The program that sets the clock.
    setter: Option<String>,
}

pub(crate) fn look(built: Option<u64>) -> Facts {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut names = processes.filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(name.trim().to_owned())
    });
    let setter = names.find(|name| SETTERS.contains(&name.as_str()));
    let marked = Path::new("/run/systemd/timesync/synchronized").exists();
    let setter = setter.or_else(|| marked.then(|| "systemd-timesyncd".to_owned()));
    Facts { now, built, setter }
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let subject = "clock";
    vec![match (&facts.setter, facts.built) {
        (_, Some(built)) if facts.now < built => Finding::missing(
            subject,
            "earlier than the day on which this berthd was built".to_owned(),
            "timedatectl set-ntp true, or date --set",
        ),
        (Some(setter), _) => Finding::ok(subject, format!("set by {setter}")),
        (None, _) => Finding::warning(
            subject,
            "no program was found that sets it; a virtual machine's may be its host's".to_owned(),
            "apt install chrony",
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{Missing, Ok, Warning};

    #[test]
    fn a_clock_before_the_build_is_wrong() {
        for (now, built, setter, expected) in [
            (100, Some(50), Some("chronyd"), Ok),
            (100, None, None, Warning),
            (100, Some(101), Some("chronyd"), Missing),
        ] {
            let facts = Facts { now, built, setter: setter.map(str::to_owned) };
            assert_eq!(judge(&facts)[0].verdict, expected);
        }
    }
}
