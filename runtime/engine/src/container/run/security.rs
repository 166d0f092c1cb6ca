//! The user, the capabilities and what else confines a container.

use std::path::PathBuf;

use berth_base::layout::Layout;
use berth_node::{
    container::{Seccomp, Security},
    sandbox::NamespaceModes,
    security::{apparmor::Profile, selinux},
};

use crate::{
    api::host_config::HostConfig,
    container::record::{Directory, Record},
    http::error::Result,
};

/// The options of `--security-opt`, read.
#[derive(Debug, Default)]
pub(super) struct Options<'a> {
    /// A profile's JSON.
    pub seccomp: Option<&'a str>,
    apparmor: Option<&'a str>,
    labels: Vec<&'a str>,
    no_new_privileges: bool,
}

impl<'a> Options<'a> {
    pub(super) fn of(host: &'a HostConfig) -> Self {
        let mut options = Self::default();
        for option in host.security_opt.iter().flatten() {
            // Old clients write a colon.
            let (name, value) = option.split_once(['=', ':']).unwrap_or((option, "true"));
            match name {
                "seccomp" => options.seccomp = Some(value),
                "apparmor" => options.apparmor = Some(value),
                "label" => options.labels.push(value),
                "no-new-privileges" => options.no_new_privileges = ["true", "1"].contains(&value),
                _ => {}
            }
        }
        options
    }

    /// The profile of its own, which is written where a run finds it.
    pub(super) fn own_seccomp(&self) -> Option<&'a str> {
        self.seccomp.filter(|profile| !["unconfined", "builtin", ""].contains(profile))
    }
}

/// The file of a container's own seccomp profile.
pub(super) fn seccomp_file(layout: &Layout, record: &Record) -> PathBuf {
    Directory::of(&layout.root, &record.id).path().join("seccomp.json")
}

pub(super) fn of(layout: &Layout, record: &Record, namespaces: NamespaceModes) -> Result<Security> {
    let host = &record.host_config;
    let options = Options::of(host);
    let paths = |paths: &Option<Vec<String>>| paths.iter().flatten().map(PathBuf::from).collect();
    let (user, group) = record.config.user.split_once(':').unwrap_or((&record.config.user, ""));
    let number = user.parse::<i64>().ok();
    Ok(Security {
        privileged: host.privileged,
        namespaces,
        add_capabilities: host.cap_add.clone().unwrap_or_default(),
        drop_capabilities: host.cap_drop.clone().unwrap_or_default(),
        run_as_user: number,
        run_as_username: if number.is_some() { String::new() } else { user.to_owned() },
        run_as_group: group.parse().ok(),
        supplemental_groups: host
            .group_add
            .iter()
            .flatten()
            .filter_map(|id| id.parse().ok())
            .collect(),
        readonly_rootfs: host.readonly_rootfs,
        no_new_privs: options.no_new_privileges,
        masked_paths: paths(&host.masked_paths),
        readonly_paths: paths(&host.readonly_paths),
        seccomp: match options.seccomp {
            _ if host.privileged => Seccomp::Unconfined,
            Some("unconfined") => Seccomp::Unconfined,
            None | Some("builtin" | "") => Seccomp::RuntimeDefault,
            Some(_) => Seccomp::Localhost(seccomp_file(layout, record)),
        },
        apparmor: match options.apparmor {
            None | Some("" | "docker-default") => Profile::RuntimeDefault,
            Some("unconfined") => Profile::Unconfined,
            Some(name) => Profile::Localhost(name.to_owned()),
        },
        selinux: selinux(&options.labels),
        ..Security::default()
    })
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
