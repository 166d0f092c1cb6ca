//! Capabilities by name, and which of them a container gets.

use berth_base::error::{Error, Result};
use berth_shim::spec::Capabilities;

use crate::container::config::Security;

/// The names of capabilities(7) without `CAP_`, in the order of their numbers.
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
/// What a container has by default: the same 14 as with Docker and containerd.
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
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of a capability, whose name may begin with `CAP_` and be in upper or lower case.
///
/// # Errors
/// `InvalidArgument` for an unknown name.
pub fn bit(name: &str) -> Result<u64> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|known| *known == plain);
    number
        .map(|number| 1 << number)
        .ok_or_else(|| Error::invalid(format!("unknown capability {name:?}")))
}

/// Kubernetes' word for every capability; not one of the kernel's.
fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

/// The set of these capabilities, but for `ALL`, which the caller treats by itself.
fn bits<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<u64> {
    names
        .into_iter()
        .filter(|name| !name.eq_ignore_ascii_case("ALL"))
        .try_fold(0, |set, name| Ok(set | bit(name)?))
}

/// The capabilities that a container gets. `ALL` is applied before single names, so that "drop ALL,
/// add X" means X alone.
///
/// # Errors
/// `InvalidArgument` for an unknown name.
pub(super) fn capabilities(security: &Security) -> Result<Capabilities> {
    let ambient = if has_all(&security.ambient_capabilities) {
        ALL
    } else {
        bits(&security.ambient_capabilities)?
    };
    let add = bits(&security.add_capabilities)?;
    let drop = bits(&security.drop_capabilities)?;
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
    // The kernel raises an ambient capability only if it is permitted as well (capabilities(7)).
    granted = (granted | add | ambient) & !drop;
    Ok(Capabilities { granted, ambient: ambient & granted })
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
            let security = Security {
                add_capabilities: names(add),
                drop_capabilities: names(drop),
                ..Security::default()
            };
            assert_eq!(capabilities(&security).unwrap().granted, expected, "+{add:?} -{drop:?}");
        }
        let unknown = Security { add_capabilities: names(&["FLY"]), ..Security::default() };
        assert!(capabilities(&unknown).unwrap_err().message.contains("FLY"));
    }
}
