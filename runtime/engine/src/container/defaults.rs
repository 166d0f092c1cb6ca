//! What a request leaves open of its `HostConfig`, filled in as dockerd does it. Inspect shows it.

use berth_node::container::{MASKED_PATHS, READONLY_PATHS};

use crate::{api::host_config::HostConfig, sysinfo::SysInfo};

/// The size of /dev/shm.
const SHM: i64 = 64 << 20;

/// The name of the network that `default` means.
pub(crate) fn network_mode(mode: &str) -> &str {
    match mode {
        "" | "default" => "bridge",
        mode => mode,
    }
}

/// Fills in everything else. The request has been checked.
pub(crate) fn fill_in(host: &mut HostConfig, machine: &SysInfo) {
    let or = |text: &mut String, default: &str| {
        if text.is_empty() {
            default.clone_into(text);
        }
    };
    or(&mut host.log_config.r#type, "json-file");
    or(&mut host.restart_policy.name, "no");
    or(&mut host.ipc_mode, "private");
    or(&mut host.cgroupns_mode, if machine.is_v2 { "private" } else { "host" });
    or(&mut host.runtime, "runc");
    if host.shm_size == 0 {
        host.shm_size = SHM;
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    host.pids_limit = host.pids_limit.filter(|limit| *limit > 0);
    if machine.oom_kill_disable {
        host.oom_kill_disable.get_or_insert(false);
    }
    if !host.privileged {
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        host.masked_paths.get_or_insert_with(|| owned(&MASKED_PATHS));
        host.readonly_paths.get_or_insert_with(|| owned(&READONLY_PATHS));
    }
    disable_labels(host);
}

/// A container that sees the host's processes or its shared memory can have no label of its own.
fn disable_labels(host: &mut HostConfig) {
    let shares_with_host = host.privileged || host.ipc_mode == "host" || host.pid_mode == "host";
    let has_label = host.security_opt.iter().flatten().any(|option| option.starts_with("label"));
    if shares_with_host && !has_label {
        host.security_opt.get_or_insert_default().push("label=disable".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_dockers() {
        let mut host =
            HostConfig { memory: 64 << 20, pids_limit: Some(-1), ..HostConfig::default() };
        fill_in(&mut host, &SysInfo::default());
        assert_eq!((host.shm_size, host.memory_swap), (67_108_864, 134_217_728));
        assert_eq!((host.cgroupns_mode.as_str(), host.pids_limit), ("host", None));
        assert_eq!(host.masked_paths.unwrap().len(), 12);
        let mut host = HostConfig { privileged: true, ..HostConfig::default() };
        fill_in(&mut host, &SysInfo { is_v2: true, ..SysInfo::default() });
        assert_eq!(host.cgroupns_mode, "private");
        assert_eq!((host.masked_paths, host.security_opt.unwrap().len()), (None, 1));
    }
}
