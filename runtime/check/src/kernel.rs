//! The kernel's version.

use crate::finding::Finding;

/// The oldest that berth supports: `cgroup.kill`, `mount_setattr(2)` and idmapped mounts came before.
const OLDEST: (u32, u32) = (5, 15);

pub(crate) struct Facts {
    release: String,
}

pub(crate) fn look() -> Facts {
    Facts { release: rustix::system::uname().release().to_string_lossy().into_owned() }
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let found = format!("Linux {}", facts.release);
    vec![match version(&facts.release) {
        Some(version) if version >= OLDEST => Finding::ok("kernel", found),
        _ => Finding::missing("kernel", found, "install and boot Linux 5.15 or newer"),
    }]
}

/// The first two numbers of a release, as of `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn a_kernel_is_old_by_its_first_two_numbers() {
        for (release, verdict) in [
            ("6.18.44-fc-v669", Verdict::Ok),
            ("5.15.0-1-amd64", Verdict::Ok),
            ("10.0", Verdict::Ok),
            ("5.14.21", Verdict::Missing),
            ("4.18.0-513.el8", Verdict::Missing),
            ("odd", Verdict::Missing),
        ] {
            let found = judge(&Facts { release: release.to_owned() });
            assert_eq!(found[0].verdict, verdict, "{release}");
        }
    }
}
