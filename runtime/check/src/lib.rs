//! `berthd check`: whether a machine has what berthd needs, told before the first start, and for bug
//! reports.
//!
//! Each file is one subject: what is read or tried of the machine becomes facts, and a pure function
//! judges them. What can be tried is tried and not derived from a version, in places that end with
//! the trial: a scratch directory, a mount that is attached nowhere, a network namespace.

mod cgroups;
mod clock;
mod finding;
mod kernel;
mod limits;
mod network;
mod programs;
mod registries;
mod runtimes;
mod security;
mod storage;

use berth_base::config::Config;
use serde::Serialize;

pub use self::finding::{Finding, Verdict};

/// What was found of a machine, in the order in which a node is set up.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The build that looked.
    version: String,
    findings: Vec<Finding>,
}

/// Looks at this machine with the configuration of the daemon to be. Changes nothing; takes three
/// seconds where a registry does not answer, and else less than one.
///
/// `built` is when this program was made, in seconds since the epoch, if that is known: an earlier
/// clock is wrong.
pub async fn check(config: &Config, version: &str, built: Option<u64>) -> Report {
    let is_root = rustix::process::geteuid().is_root();
    let (registries, storage, rules) = tokio::join!(
        registries::ask(&config.registry.config_path),
        storage::look(&config.root, is_root),
        network::try_rules(is_root),
    );
    let mut findings = Vec::new();
    if !is_root {
        let found = "this is not root: mounts, namespaces and sockets were not tried".to_owned();
        findings.push(Finding::warning("privileges", found, "sudo berthd check"));
    }
    findings.extend(kernel::judge(&kernel::look()));
    findings.extend(programs::judge(&programs::look()));
    findings.extend(cgroups::judge(&cgroups::look(config.cgroup.driver)));
    findings.extend(storage::judge(&storage));
    findings.extend(security::judge(&security::look()));
    findings.extend(network::judge(&network::look(&config.cni, rules)));
    findings.extend(runtimes::judge(&runtimes::look(config)));
    findings.extend(limits::judge(&limits::look()));
    findings.extend(clock::judge(&clock::look(built)));
    findings.extend(registries.iter().map(registries::judge));
    Report { version: version.to_owned(), findings }
}

impl Report {
    /// Whether nothing is missing. There may be warnings.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Missing)
    }

    /// One JSON document: `{"version": TEXT, "findings": [{"subject", "verdict", "found", "remedy"}]}`,
    /// without `remedy` where nothing is to be done.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("text has no cause to fail") + "\n"
    }

    /// A line for each finding, one more for its remedy, and how many there are of each kind.
    pub fn table(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            text += &finding.lines(width);
        }
        let count = |verdict| self.findings.iter().filter(|it| it.verdict == verdict).count();
        text + &format!(
            "\n{} ok, {} warnings, {} missing\n",
            count(Verdict::Ok),
            count(Verdict::Warning),
            count(Verdict::Missing)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_makes_a_report_bad_and_a_warning_does_not() {
        let mut report = Report {
            version: "1".to_owned(),
            findings: vec![
                Finding::ok("kernel", "Linux 6.12".to_owned()),
                Finding::warning("clock", "nobody sets it".to_owned(), "apt install chrony"),
            ],
        };
        assert!(report.is_good());
        assert_eq!(
            report.table(),
            "kernel  ok       Linux 6.12\n\
             clock   warning  nobody sets it\n                 > apt install chrony\n\n\
             1 ok, 1 warnings, 0 missing\n"
        );
        assert!(!report.json().contains("null"));
        report.findings.push(Finding::missing("overlay", "no".to_owned(), "modprobe overlay"));
        assert!(!report.is_good());
    }
}
