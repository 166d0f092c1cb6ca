//! Capabilities by name, and who the process is.

use berth_shim::spec::{Capabilities, Identity, User};

use super::Security;
use crate::error::{Error, Result};

/// capabilities(7), in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// What a container has unless told otherwise: Docker's and containerd's 14.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of a capability, with or without `CAP_`, in any case.
pub(super) fn bit(name: &str) -> Result<u64> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|known| *known == plain);
    number.map(|number| 1 << number).ok_or_else(|| Error::invalid(format!("unknown capability {name:?}")))
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

fn bits<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<u64> {
    names.into_iter().filter(|name| !name.eq_ignore_ascii_case("ALL")).try_fold(0, |set, name| Ok(set | bit(name)?))
}

/// `ALL` first, then single names, so that "drop ALL, add X" is X alone.
pub(super) fn capabilities(security: &Security) -> Result<Capabilities> {
    let ambient = if has_all(&security.ambient_capabilities) { ALL } else { bits(&security.ambient_capabilities)? };
    let (add, drop) = (bits(&security.add_capabilities)?, bits(&security.drop_capabilities)?);
    if security.privileged {
        return Ok(Capabilities { granted: ALL, ambient });
    }
    let mut granted = DEFAULT.iter().try_fold(0, |set, name| Ok::<_, Error>(set | bit(name)?))?;
    if has_all(&security.add_capabilities) {
        granted = ALL;
    }
    if has_all(&security.drop_capabilities) {
        granted = 0;
    }
    granted = (granted | add | ambient) & !drop;
    Ok(Capabilities { granted, ambient: ambient & granted })
}

/// Of the request, else of the image (`user[:group]`).
///
/// # Errors
/// `InvalidArgument` for a group without a user, for both a user and a username, and for numbers out of range.
pub(super) fn user(security: &Security, of_image: &str) -> Result<User> {
    let (from_image, group_of_image) = match of_image.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (of_image, None),
    };
    let named = !security.run_as_username.is_empty();
    let (user, group_of_image) = match (security.run_as_user, named) {
        (Some(_), true) => return Err(Error::invalid("run_as_user and run_as_username exclude each other")),
        (Some(uid), false) => (Identity::Id(id(uid)?), None),
        (None, true) => (identity(&security.run_as_username)?, None),
        (None, false) if security.run_as_group.is_some() => {
            return Err(Error::invalid("run_as_group needs run_as_user or run_as_username"));
        }
        (None, false) if from_image.is_empty() => (Identity::Id(0), group_of_image),
        (None, false) => (identity(from_image)?, group_of_image),
    };
    let group = match (security.run_as_group, group_of_image) {
        (Some(gid), _) => Some(Identity::Id(id(gid)?)),
        (None, Some(group)) => Some(identity(group)?),
        (None, None) => None,
    };
    let supplementary = security.supplemental_groups.iter().map(|gid| id(*gid)).collect::<Result<_>>()?;
    Ok(User { user, group, supplementary, merge_groups: !security.strict_groups })
}

fn id(number: i64) -> Result<u32> {
    // -1 means "leave it" to the system calls.
    let fits = u32::try_from(number).ok().filter(|id| *id != u32::MAX);
    fits.ok_or_else(|| Error::invalid(format!("user or group {number} is out of range")))
}

/// All digits is a number or an error, and never a name (CVE-2024-40635).
pub(crate) fn identity(text: &str) -> Result<Identity> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse().map_err(|_| Error::invalid(format!("user or group {text} is out of range")))?;
        return Ok(Identity::Id(id(number)?));
    }
    Ok(Identity::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn capabilities_follow_all_then_single_names() {
        let default = capabilities(&Security::default()).unwrap().granted;
        assert_eq!(default.count_ones(), 14);
        let set = |list: &[&str]| list.iter().fold(0, |set, name| set | bit(name).unwrap());
        for (add, drop, expected) in [
            (&["NET_ADMIN"][..], &[][..], default | set(&["NET_ADMIN"])),
            (&["cap_sys_admin"], &["CHOWN"], (default | set(&["SYS_ADMIN"])) & !set(&["CHOWN"])),
            (&[], &["ALL"], 0),
            (&["CHOWN"], &["ALL"], set(&["CHOWN"])),
            (&["ALL"], &["CHOWN"], ALL & !set(&["CHOWN"])),
            (&["ALL"], &[], ALL),
        ] {
            let security =
                Security { add_capabilities: names(add), drop_capabilities: names(drop), ..Security::default() };
            assert_eq!(capabilities(&security).unwrap().granted, expected, "+{add:?} -{drop:?}");
        }
        let unknown = Security { add_capabilities: names(&["FLY"]), ..Security::default() };
        assert!(capabilities(&unknown).unwrap_err().message.contains("FLY"));
    }

    #[test]
    fn users_are_of_the_request_then_of_the_image() {
        let name = |text: &str| Identity::Name(text.into());
        for (image, expected) in [
            ("", (Identity::Id(0), None)),
            ("1000", (Identity::Id(1000), None)),
            ("1000:50", (Identity::Id(1000), Some(Identity::Id(50)))),
            ("www:", (name("www"), None)),
            ("www:adm", (name("www"), Some(name("adm")))),
        ] {
            let user = user(&Security::default(), image).unwrap();
            assert_eq!((user.user, user.group), expected, "{image:?}");
        }
        let asked = Security { run_as_user: Some(7), ..Security::default() };
        assert_eq!(user(&asked, "www:adm").unwrap().group, None);
        let (alone, both, negative) = (
            Security { run_as_group: Some(7), ..Security::default() },
            Security { run_as_user: Some(7), run_as_username: "x".into(), ..Security::default() },
            Security { run_as_user: Some(-1), ..Security::default() },
        );
        for security in [alone, both, negative] {
            assert!(user(&security, "").is_err(), "{security:?}");
        }
        assert!(identity("4294967296").is_err() && identity("4294967295").is_err());
    }
}
