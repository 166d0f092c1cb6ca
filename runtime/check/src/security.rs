//! What confines containers: seccomp, AppArmor, SELinux, and Landlock for who unpacks images.

use std::{env, fs, path::Path};

use crate::finding::Finding;

pub(crate) struct Facts {
    /// What a filter may do (seccomp(2)); empty without filters.
    seccomp: String,
    apparmor: AppArmor,
    selinux: SeLinux,
    /// The active security modules; `None` where the kernel does not say.
    modules: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AppArmor {
    Off,
    WithoutParser,
    On,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SeLinux {
    Off,
    /// The policy knows nothing of containers.
    WithoutPolicy,
    On,
}

pub(crate) fn look() -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let apparmor = match read("/sys/module/apparmor/parameters/enabled").starts_with('Y') {
        false => AppArmor::Off,
        true if is_in_path("apparmor_parser") => AppArmor::On,
        true => AppArmor::WithoutParser,
    };
    let policy = read("/etc/selinux/config");
    let policy = policy.lines().find_map(|line| line.strip_prefix("SELINUXTYPE="));
    let contexts = format!("/etc/selinux/{}/contexts/lxc_contexts", policy.unwrap_or("").trim());
    let selinux = match Path::new("/sys/fs/selinux/enforce").exists() {
        false => SeLinux::Off,
        true if Path::new(&contexts).exists() => SeLinux::On,
        true => SeLinux::WithoutPolicy,
    };
    Facts {
        seccomp: read("/proc/sys/kernel/seccomp/actions_avail").trim().to_owned(),
        apparmor,
        selinux,
        modules: fs::read_to_string("/sys/kernel/security/lsm").ok(),
    }
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let seccomp = match facts.seccomp.split(' ').any(|action| action == "errno") {
        true => Finding::ok("seccomp", facts.seccomp.clone()),
        false => Finding::missing(
            "seccomp",
            "this kernel has no filters, and the default profile is one".to_owned(),
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        ),
    };
    let apparmor = match facts.apparmor {
        AppArmor::Off => Finding::ok("AppArmor", "not enabled in this kernel".to_owned()),
        AppArmor::On => Finding::ok("AppArmor", "enabled".to_owned()),
        AppArmor::WithoutParser => Finding::warning(
            "AppArmor",
            "enabled, and containers run without a profile: there is no apparmor_parser".to_owned(),
            "apt install apparmor",
        ),
    };
    let selinux = match facts.selinux {
        SeLinux::Off => Finding::ok("SELinux", "not enabled".to_owned()),
        SeLinux::On => Finding::ok("SELinux", "enabled, with a policy for containers".to_owned()),
        SeLinux::WithoutPolicy => Finding::warning(
            "SELinux",
            "enabled, and containers have no label: the policy has no lxc_contexts".to_owned(),
            "dnf install container-selinux",
        ),
    };
    let landlock = facts.modules.iter().filter(|modules| !modules.contains("landlock")).map(|_| {
        Finding::warning(
            "Landlock",
            "not enabled: layers are unpacked in a chroot alone".to_owned(),
            "boot with landlock in front of lsm=",
        )
    });
    [seccomp, apparmor, selinux].into_iter().chain(landlock).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{self, Missing, Ok, Warning};

    #[test]
    fn what_is_enabled_in_half_is_a_warning() {
        let facts = |seccomp: &str, apparmor, selinux, modules: Option<&str>| Facts {
            seccomp: seccomp.to_owned(),
            apparmor,
            selinux,
            modules: modules.map(str::to_owned),
        };
        for (facts, expected) in [
            (facts("kill errno allow", AppArmor::Off, SeLinux::Off, None), &[Ok, Ok, Ok][..]),
            (facts("errno", AppArmor::On, SeLinux::On, Some("landlock,apparmor")), &[Ok, Ok, Ok]),
            (
                facts("", AppArmor::WithoutParser, SeLinux::WithoutPolicy, Some("capability")),
                &[Missing, Warning, Warning, Warning],
            ),
        ] {
            let found: Vec<Verdict> = judge(&facts).iter().map(|finding| finding.verdict).collect();
            assert_eq!(found, expected);
        }
    }
}
