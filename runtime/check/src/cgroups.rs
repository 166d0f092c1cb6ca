//! The version of cgroups, their controllers, and who makes them.

use std::{collections::BTreeSet, fs, path::Path};

use berth_base::config::Driver;

use crate::finding::Finding;

const ROOT: &str = "/sys/fs/cgroup";
/// Without these, limits of pods are not enforced.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// Without these, single features are not there: pinned processors, limits of disks.
const USEFUL: [[&str; 2]; 2] = [["cpuset", "cpuset"], ["io", "blkio"]];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    None,
    V1,
    /// Controllers on v1, and a tree of v2 without them.
    Hybrid,
    V2,
}

pub(crate) struct Facts {
    version: Version,
    controllers: BTreeSet<String>,
    /// systemd is the first process.
    systemd: bool,
    driver: Driver,
}

pub(crate) fn look(driver: Driver) -> Facts {
    let root = Path::new(ROOT);
    let unified = fs::read_to_string(root.join("cgroup.controllers"));
    let (version, controllers) = match unified {
        Ok(text) => (Version::V2, text.split_whitespace().map(str::to_owned).collect()),
        Err(_) => {
            let controllers = v1_controllers(root);
            let version = match root.join("unified/cgroup.controllers").exists() {
                _ if controllers.is_empty() => Version::None,
                true => Version::Hybrid,
                false => Version::V1,
            };
            (version, controllers)
        }
    };
    Facts { version, controllers, systemd: Path::new("/run/systemd/system").is_dir(), driver }
}

/// The mounted trees, by the names of their directories: `cpu` may be a link to `cpu,cpuacct`.
fn v1_controllers(root: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let trees = entries.filter(|entry| entry.path().join("tasks").exists());
    trees.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let names: Vec<&str> = facts.controllers.iter().map(String::as_str).collect();
    let names = names.join(" ");
    let cgroups = match facts.version {
        Version::None => {
            let found = format!("no cgroups at {ROOT}");
            let remedy = format!("mount -t cgroup2 cgroup2 {ROOT}");
            return vec![Finding::missing("cgroups", found, remedy)];
        }
        Version::V2 => Finding::ok("cgroups", format!("v2: {names}")),
        old => Finding::warning(
            "cgroups",
            format!(
                "{}: {names}; kubelets from 1.35 on refuse to start on v1",
                if old == Version::V1 { "v1" } else { "v1 and an empty v2 (hybrid)" }
            ),
            "boot with systemd.unified_cgroup_hierarchy=1, or failCgroupV1: false in the kubelet's \
             configuration",
        ),
    };
    [cgroups].into_iter().chain(controllers(facts)).chain([driver(facts)]).collect()
}

/// What is to be said of controllers that are not there.
fn controllers(facts: &Facts) -> Vec<Finding> {
    let has = |name: &str| facts.controllers.contains(name);
    let absent = |names: &[&'static str]| {
        names.iter().copied().filter(|name| !has(name)).collect::<Vec<_>>().join(" ")
    };
    let needed: &[&str] = match facts.version {
        Version::V2 => &NEEDED,
        // What v2 does with a program of eBPF, and counts without a controller.
        _ => &["cpu", "cpuacct", "devices", "memory", "pids"],
    };
    let (needed, subject) = (absent(needed), "controllers");
    if !needed.is_empty() {
        let remedy = match needed.split(' ').any(|name| name == "memory") {
            true => "boot with cgroup_enable=memory, or a kernel that has it",
            false => "boot a kernel that has them, without cgroup_disable=",
        };
        return vec![Finding::missing(subject, format!("without {needed}"), remedy)];
    }
    let useful = USEFUL.iter().filter(|names| !names.iter().any(|name| has(name)));
    let useful: Vec<&str> = useful.map(|names| names[0]).collect();
    match useful.is_empty() {
        true => Vec::new(),
        false => vec![Finding::warning(
            subject,
            format!("without {}: limits of them are refused", useful.join(" ")),
            "boot a kernel that has them",
        )],
    }
}

/// Two who make cgroups in one tree undo each other's work.
fn driver(facts: &Facts) -> Finding {
    let is_v2 = facts.version == Version::V2;
    let subject = "cgroup driver";
    match (facts.driver, facts.systemd && is_v2) {
        (Driver::Systemd, false) => Finding::missing(
            subject,
            "systemd is configured, and this is no machine with systemd and cgroup v2".to_owned(),
            "in /etc/berth/config.toml: [cgroup] driver = \"cgroupfs\"",
        ),
        (Driver::Cgroupfs, true) => Finding::warning(
            subject,
            "cgroupfs, while systemd manages cgroups here as well".to_owned(),
            "in /etc/berth/config.toml: [cgroup] driver = \"systemd\"",
        ),
        (Driver::Systemd, true) => Finding::ok(subject, "systemd, which runs here".to_owned()),
        (Driver::Cgroupfs, false) => Finding::ok(subject, "cgroupfs".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{self, Missing, Ok, Warning};

    fn verdicts(version: Version, names: &str, systemd: bool, driver: Driver) -> Vec<Verdict> {
        let controllers = names.split_whitespace().map(str::to_owned).collect();
        let found = judge(&Facts { version, controllers, systemd, driver });
        found.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn versions_controllers_and_drivers_are_judged_together() {
        let (all, v1) =
            ("cpuset cpu io memory pids", "blkio cpu cpuacct cpuset devices memory pids");
        for (version, names, systemd, driver, expected) in [
            (Version::V2, all, true, Driver::Systemd, &[Ok, Ok][..]),
            (Version::V2, all, true, Driver::Cgroupfs, &[Ok, Warning]),
            (Version::V2, all, false, Driver::Cgroupfs, &[Ok, Ok]),
            (Version::V2, all, false, Driver::Systemd, &[Ok, Missing]),
            (Version::V2, "cpu io memory pids", true, Driver::Systemd, &[Ok, Warning, Ok]),
            (Version::V2, "cpu io cpuset pids", true, Driver::Systemd, &[Ok, Missing, Ok]),
            (Version::Hybrid, v1, false, Driver::Cgroupfs, &[Warning, Ok]),
            (Version::V1, v1, true, Driver::Systemd, &[Warning, Missing]),
            (Version::None, "", true, Driver::Systemd, &[Missing]),
        ] {
            let found = verdicts(version, names, systemd, driver);
            assert_eq!(found, expected, "{version:?} {names} {systemd} {driver:?}");
        }
    }
}
