//! Which sysctls a pod may set: those of the namespaces that it has of its own.

use anyhow::bail;
use berth_base::error::{Error, Result};

use super::config::Config;

/// Sysctls that every pod with its own network gets, as with containerd's defaults. Programs may
/// then bind ports below 1024 and send pings without any capability.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
/// Sysctls of an IPC namespace, besides `fs.mqueue.*` (ipc_namespaces(7)).
const IPC_SYSCTLS: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msg_next_id",
];
/// Sysctls of a UTS namespace (uts_namespaces(7)).
const UTS_SYSCTLS: [&str; 2] = ["kernel.hostname", "kernel.domainname"];

/// The sysctls to set, as names and values, with the defaults first.
///
/// # Errors
/// `InvalidArgument` for a sysctl that does not belong to a namespace of the pod's own, since it
/// would change the host.
pub(super) fn check(config: &Config) -> Result<Vec<(String, String)>> {
    let own_net = config.owns_network();
    let own_ipc = config.owns_ipc();
    let mut sysctls: Vec<(String, String)> = Vec::new();
    if own_net {
        let given = |name: &str| config.sysctls.contains_key(name);
        let defaults = DEFAULT_SYSCTLS.iter().filter(|(name, _)| !given(name));
        sysctls.extend(defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }
    for (name, value) in &config.sysctls {
        check_one(name, own_net, own_ipc, !config.shares_uts())
            .map_err(|error| Error::invalid(format!("sysctl {name:?}: {error}")))?;
        sysctls.push((name.clone(), value.clone()));
    }
    Ok(sysctls)
}

fn check_one(name: &str, own_net: bool, own_ipc: bool, own_uts: bool) -> anyhow::Result<()> {
    // sysctl(8) accepts both separators. Two dots in a row stand for an empty component or for
    // `..`, with which a path made of the name could lead out of /proc/sys.
    let dotted = name.replace('/', ".");
    if dotted.contains("..") || dotted.starts_with('.') || name.contains('\0') {
        bail!("this is not the name of a sysctl");
    }
    let (needs, has) = if dotted.starts_with("net.") {
        ("network", own_net)
    } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        ("IPC", own_ipc)
    } else if UTS_SYSCTLS.contains(&dotted.as_str()) {
        ("UTS", own_uts)
    } else {
        bail!("it belongs to no namespace of a pod, so that it would change the host");
    };
    if has {
        Ok(())
    } else {
        bail!("the pod has no {needs} namespace of its own, so that it would change the host's")
    }
}

#[cfg(test)]
mod tests {
    use super::check_one;

    #[test]
    fn sysctls_belong_to_a_namespace_of_the_pod() {
        for (name, net, ipc, uts, allowed) in [
            ("net.core.somaxconn", true, true, true, true),
            ("net/core/somaxconn", true, true, true, true),
            ("net.core.somaxconn", false, true, true, false),
            ("kernel.shmmax", true, true, true, true),
            ("kernel.shmmax", true, false, true, false),
            ("fs.mqueue.msg_max", false, true, true, true),
            ("kernel.domainname", true, true, false, false),
            ("kernel.panic", true, true, true, false),
            ("vm.swappiness", true, true, true, false),
            ("net.../../kernel/panic", true, true, true, false),
            ("net/../kernel/panic", true, true, true, false),
        ] {
            assert_eq!(check_one(name, net, ipc, uts).is_ok(), allowed, "{name}");
        }
    }
}
