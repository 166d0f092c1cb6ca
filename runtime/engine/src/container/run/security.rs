//! The user, the capabilities and what else confines a container.

use std::path::PathBuf;

use berth_node::{
    container::{Seccomp, Security, capability_bit},
    sandbox::NamespaceModes,
    security::{apparmor::Profile, selinux},
};
use http::StatusCode;

use crate::{
    api::host_config::HostConfig,
    container::{record::Record, users},
    http::error::{Failure, Result},
};

/// The options of `--security-opt`, read.
#[derive(Debug, Default)]
struct Options<'a> {
    /// A profile's JSON, or the name of a built-in one.
    seccomp: Option<&'a str>,
    apparmor: Option<&'a str>,
    labels: Vec<&'a str>,
    no_new_privileges: bool,
    writable_cgroups: bool,
}

impl<'a> Options<'a> {
    fn of(host: &'a HostConfig) -> Self {
        let mut options = Self::default();
        for option in host.security_opt.iter().flatten() {
            // Old clients write a colon.
            let (name, value) = option.split_once(['=', ':']).unwrap_or((option, "true"));
            match name {
                "seccomp" => options.seccomp = Some(value),
                "apparmor" => options.apparmor = Some(value),
                "label" => options.labels.push(value),
                "no-new-privileges" => options.no_new_privileges = ["true", "1"].contains(&value),
                "writable-cgroups" => options.writable_cgroups = ["true", "1"].contains(&value),
                "disable" => options.labels.push("disable"),
                _ => {}
            }
        }
        options
    }

    /// Refuses a profile that is none, and labels that would have no effect.
    fn check(&self) -> Result<()> {
        let is_known = |label: &&str| {
            *label == "disable"
                || matches!(label.split_once(':'), Some(("user" | "role" | "type" | "level", _)))
        };
        if let Some(unknown) = self.labels.iter().find(|label| !is_known(label)) {
            return Err(Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "Bad label option \"{unknown}\", valid options 'disable' or 'user, role, level, \
                     type' followed by ':' and a value"
                ),
            ));
        }
        let error = self
            .own_seccomp()
            .and_then(|profile| serde_json::from_str::<serde::de::IgnoredAny>(profile).err());
        match error {
            None => Ok(()),
            Some(error) => Err(Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("Decoding seccomp profile failed: {error}"),
            )),
        }
    }

    /// The profile of its own.
    fn own_seccomp(&self) -> Option<&'a str> {
        self.seccomp.filter(|profile| !["unconfined", "builtin", ""].contains(profile))
    }
}

pub(super) fn of(record: &Record, namespaces: NamespaceModes) -> Result<Security> {
    let host = &record.host_config;
    let options = Options::of(host);
    options.check()?;
    let paths = |paths: &Option<Vec<String>>| match host.privileged {
        true => Vec::new(),
        false => paths.iter().flatten().map(PathBuf::from).collect(),
    };
    let groups = host.group_add.iter().flatten();
    let (numbers, names): (Vec<&String>, Vec<&String>) =
        groups.partition(|group| group.parse::<i64>().is_ok());
    Ok(Security {
        privileged: host.privileged,
        namespaces,
        add_capabilities: host.cap_add.clone().unwrap_or_default(),
        drop_capabilities: dropped(host),
        user: Some(record.config.user.clone()),
        strict_groups: users::has_group(&record.config.user),
        supplemental_groups: numbers.iter().filter_map(|group| group.parse().ok()).collect(),
        group_names: names.into_iter().cloned().collect(),
        readonly_rootfs: host.readonly_rootfs,
        no_new_privs: options.no_new_privileges,
        masked_paths: paths(&host.masked_paths),
        readonly_paths: paths(&host.readonly_paths),
        seccomp: match options.seccomp {
            Some("unconfined") => Seccomp::Unconfined,
            _ => Seccomp::RuntimeDefault,
        },
        seccomp_profile: options.own_seccomp().map(str::to_owned),
        host_cgroup: host.cgroupns_mode == "host",
        writable_cgroups: options.writable_cgroups,
        apparmor: match options.apparmor {
            None | Some("" | "docker-default") => Profile::RuntimeDefault,
            Some("unconfined") => Profile::Unconfined,
            Some(name) => Profile::Localhost(name.to_owned()),
        },
        selinux: selinux(&options.labels),
        ..Security::default()
    })
}

/// What is taken away. A capability that is also asked for stays.
fn dropped(host: &HostConfig) -> Vec<String> {
    let added = host.cap_add.iter().flatten().filter_map(|name| capability_bit(name).ok());
    let added = added.fold(0, |set, bit| set | bit);
    let stays = |name: &String| capability_bit(name).is_ok_and(|bit| added & bit != 0);
    host.cap_drop.iter().flatten().filter(|name| !stays(name)).cloned().collect()
}

/// `user:U`, `role:R`, `type:T`, `level:L`, or `disable`.
fn selinux(labels: &[&str]) -> selinux::Options {
    let mut options = selinux::Options::default();
    for label in labels {
        match label.split_once(':') {
            Some(("user", user)) => user.clone_into(&mut options.user),
            Some(("role", role)) => role.clone_into(&mut options.role),
            Some(("type", kind)) => kind.clone_into(&mut options.kind),
            Some(("level", level)) => level.clone_into(&mut options.level),
            // The type that policies have for containers without confinement.
            _ if *label == "disable" => "spc_t".clone_into(&mut options.kind),
            _ => {}
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_both_forms() {
        let host = |options: &[&str]| HostConfig {
            security_opt: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            ..HostConfig::default()
        };
        for (options, seccomp, apparmor, no_new_privileges) in [
            (&["seccomp=unconfined", "apparmor:x"][..], Some("unconfined"), Some("x"), false),
            (&["no-new-privileges"], None, None, true),
            (&["no-new-privileges:true"], None, None, true),
            (&["no-new-privileges=false"], None, None, false),
            (&[r#"seccomp={"defaultAction":"a"}"#], Some(r#"{"defaultAction":"a"}"#), None, false),
        ] {
            let host = host(options);
            let read = Options::of(&host);
            assert_eq!((read.seccomp, read.apparmor), (seccomp, apparmor));
            assert_eq!(read.no_new_privileges, no_new_privileges);
        }
        let kind = |label| selinux(&[label]).kind;
        assert_eq!((kind("disable"), kind("type:t")), ("spc_t".to_owned(), "t".to_owned()));
    }
}
