//! The limits of a request, at create and at update: what they must be, and what this machine does
//! not have.

use crate::{
    api::host_config::HostConfig,
    http::error::{Failure, Result},
    sysinfo::{SysInfo, parse_list},
};

/// The least memory that a container can run in.
const MINIMUM: i64 = 6 << 20;

/// Refuses limits that contradict each other, and drops those that the machine does not have, with
/// a warning for each.
///
/// # Errors
/// 400 in dockerd's words.
pub(crate) fn resources(
    host: &mut HostConfig,
    machine: &SysInfo,
    is_update: bool,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    memory(host, machine, is_update, &mut warnings)?;
    cpu(host, machine, &mut warnings)?;
    cpusets(host, machine, &mut warnings)?;
    block_devices(host, machine, &mut warnings)?;
    Ok(warnings)
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure::bad_request(text))
}

fn memory(
    host: &mut HostConfig,
    machine: &SysInfo,
    is_update: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    // The CLI's word for none.
    host.memory_swappiness = host.memory_swappiness.filter(|swappiness| *swappiness != -1);
    if host.memory != 0 && host.memory < MINIMUM {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && !machine.memory_limit {
        warnings.push(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. \
             Limitation discarded."
                .to_owned(),
        );
        (host.memory, host.memory_swap) = (0, -1);
    }
    if host.memory > 0 && host.memory_swap != -1 && !machine.swap_limit {
        warnings.push(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. \
             Memory limited without swap."
                .to_owned(),
        );
        host.memory_swap = -1;
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 && !is_update {
        return refuse(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        );
    }
    if host.memory_swappiness.is_some() && !machine.swappiness {
        warnings.push(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not \
             mounted. Memory swappiness discarded."
                .to_owned(),
        );
        host.memory_swappiness = None;
    }
    if let Some(swappiness) = host.memory_swappiness.filter(|value| !(0..=100).contains(value)) {
        return refuse(format!(
            "Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        ));
    }
    if host.memory_reservation > 0 && !machine.memory_reservation {
        warnings.push(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not \
             mounted. Limitation discarded."
                .to_owned(),
        );
        host.memory_reservation = 0;
    }
    if host.memory_reservation > 0 && host.memory_reservation < MINIMUM {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        return refuse(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        );
    }
    oom_and_pids(host, machine, warnings);
    Ok(())
}

fn oom_and_pids(host: &mut HostConfig, machine: &SysInfo, warnings: &mut Vec<String>) {
    if host.oom_kill_disable.is_some() && !machine.oom_kill_disable {
        // Who wants the killer to be there needs no warning.
        if host.oom_kill_disable == Some(true) {
            warnings.push(
                "Your kernel does not support OomKillDisable. OomKillDisable discarded.".to_owned(),
            );
        }
        host.oom_kill_disable = None;
    }
    if host.oom_kill_disable == Some(true) && host.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can \
             result in the system running out of resources."
                .to_owned(),
        );
    }
    if host.pids_limit.is_some() && !machine.pids_limit {
        if host.pids_limit > Some(0) {
            warnings.push(
                "Your kernel does not support PIDs limit capabilities or the cgroup is not \
                 mounted. PIDs limit discarded."
                    .to_owned(),
            );
        }
        host.pids_limit = None;
    }
}

fn cpu(host: &mut HostConfig, machine: &SysInfo, warnings: &mut Vec<String>) -> Result<()> {
    if host.nano_cpus > 0 && host.cpu_period > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.nano_cpus > 0 && host.cpu_quota > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    if host.nano_cpus > 0 && !machine.cpu_cfs {
        return refuse(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the \
             cgroup is not mounted",
        );
    }
    let cpus = machine.cpus;
    let most = i64::try_from(cpus).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    if !(0..=most).contains(&host.nano_cpus) {
        return refuse(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        ));
    }
    if host.cpu_shares < 0 {
        let shares = host.cpu_shares;
        return refuse(format!("invalid CPU shares ({shares}): value must be a positive integer"));
    }
    if host.cpu_shares > 0 && !machine.cpu_shares {
        warnings.push(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares \
             discarded."
                .to_owned(),
        );
        host.cpu_shares = 0;
    }
    if (host.cpu_period != 0 || host.cpu_quota != 0) && !machine.cpu_cfs {
        warnings.push(
            "Your kernel does not support CPU CFS scheduler. CPU period/quota discarded."
                .to_owned(),
        );
        (host.cpu_period, host.cpu_quota) = (0, 0);
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_percent > 0 {
        warnings.push("linux does not support CPU percent. Percent discarded.".to_owned());
        host.cpu_percent = 0;
    }
    Ok(())
}

fn cpusets(host: &mut HostConfig, machine: &SysInfo, warnings: &mut Vec<String>) -> Result<()> {
    let names_processors = !host.cpuset_cpus.is_empty() || !host.cpuset_mems.is_empty();
    if names_processors && !machine.cpuset {
        warnings.push(
            "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded."
                .to_owned(),
        );
        host.cpuset_cpus.clear();
        host.cpuset_mems.clear();
    }
    for (asked, what, noun, available) in [
        (&host.cpuset_cpus, "cpuset cpus", "CPUs", &machine.cpu_list),
        (&host.cpuset_mems, "cpuset mems", "memory nodes", &machine.memory_nodes),
    ] {
        let Some(wanted) = parse_list(asked) else {
            return refuse(format!("Invalid value {asked} for {what}: invalid format: {asked}"));
        };
        let known = parse_list(available).unwrap_or_default();
        if !wanted.is_subset(&known) {
            return refuse(format!(
                "Requested {noun} are not available - requested {asked}, available: {available}"
            ));
        }
    }
    Ok(())
}

fn block_devices(
    host: &mut HostConfig,
    machine: &SysInfo,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if host.blkio_weight > 0 && !machine.blkio_weight {
        warnings.push(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight \
             discarded."
                .to_owned(),
        );
        host.blkio_weight = 0;
    }
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    let has_weights = host.blkio_weight_device.as_ref().is_some_and(|list| !list.is_empty());
    if has_weights && !machine.blkio_weight_device {
        warnings.push(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. \
             Weight-device discarded."
                .to_owned(),
        );
        host.blkio_weight_device = Some(Vec::new());
    }
    if machine.blkio_throttle {
        return Ok(());
    }
    for (list, first, second) in [
        (&mut host.blkio_device_read_bps, "BPS Block I/O read", "Block I/O BPS read"),
        (&mut host.blkio_device_write_bps, "BPS Block I/O write", "Block I/O BPS write"),
        (&mut host.blkio_device_read_iops, "IOPS Block read", "Block I/O IOPS read"),
        (&mut host.blkio_device_write_iops, "IOPS Block write", "Block I/O IOPS write"),
    ] {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            warnings.push(format!(
                "Your kernel does not support {first} limit or the cgroup is not mounted. {second} \
                 limit discarded."
            ));
            *list = Some(Vec::new());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> SysInfo {
        SysInfo {
            cpus: 2,
            cpu_list: "0-1".into(),
            memory_nodes: "0".into(),
            memory_limit: true,
            memory_reservation: true,
            swap_limit: true,
            swappiness: true,
            oom_kill_disable: true,
            cpu_shares: true,
            cpu_cfs: true,
            cpuset: true,
            pids_limit: true,
            ..SysInfo::default()
        }
    }

    #[test]
    fn contradictions_are_refused_in_dockerds_words() {
        let mib = 1 << 20;
        let of = HostConfig::default;
        for (host, text) in [
            (HostConfig { memory: 100, ..of() }, "Minimum memory limit allowed is 6MB"),
            (
                HostConfig { memory: 64 * mib, memory_swap: 1000, ..of() },
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                HostConfig { memory_swap: 64 * mib, ..of() },
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                HostConfig { memory_swappiness: Some(101), ..of() },
                "Invalid value: 101, valid memory swappiness range is 0-100",
            ),
            (
                HostConfig { nano_cpus: -1, ..of() },
                "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
            ),
            (
                HostConfig { nano_cpus: 1, cpu_quota: 50_000, ..of() },
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ),
            (
                HostConfig { cpuset_cpus: "99".into(), ..of() },
                "Requested CPUs are not available - requested 99, available: 0-1",
            ),
            (
                HostConfig { cpuset_cpus: "x".into(), ..of() },
                "Invalid value x for cpuset cpus: invalid format: x",
            ),
            (
                HostConfig { cpu_shares: -1, ..of() },
                "invalid CPU shares (-1): value must be a positive integer",
            ),
        ] {
            let mut host = host;
            assert_eq!(resources(&mut host, &machine(), false).unwrap_err().message, text);
        }
    }

    #[test]
    fn what_the_machine_has_not_is_dropped_with_a_warning() {
        let mut host = HostConfig {
            blkio_weight: 300,
            oom_kill_disable: Some(true),
            memory_swappiness: Some(-1),
            ..HostConfig::default()
        };
        let warnings = resources(&mut host, &machine(), false).unwrap();
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("OOM killer is disabled for the container, but no memory"));
        assert!(warnings[1].ends_with("Weight discarded."));
        assert_eq!((host.blkio_weight, host.memory_swappiness), (0, None));
    }
}
