//! The limits of a container, and those of its processes.

use std::{fs, os::unix::fs::MetadataExt};

use berth_node::cgroup::{BlockIo, DeviceLimit, Resources};
use berth_shim::spec::Ulimit;
use http::StatusCode;

use crate::{
    api::host_config::{HostConfig, ThrottleDevice},
    http::error::{Failure, Result},
};

/// The period for which a number of CPUs is a quota, in microseconds.
const PERIOD: i64 = 100_000;

/// What is asked for; 0 is no limit.
///
/// # Errors
/// 500 for a block device that is not there.
pub(crate) fn resources(host: &HostConfig) -> Result<Resources> {
    let (cpu_period, cpu_quota) = match host.nano_cpus {
        0 => (host.cpu_period, host.cpu_quota),
        nano => (PERIOD, nano / (1_000_000_000 / PERIOD)),
    };
    Ok(Resources {
        cpu_period,
        cpu_quota,
        cpu_shares: host.cpu_shares,
        cpu_realtime_period: host.cpu_realtime_period,
        cpu_realtime_runtime: host.cpu_realtime_runtime,
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        memory_limit: host.memory,
        // Twice the memory, unless something else is asked for.
        memory_swap_limit: match (host.memory, host.memory_swap) {
            (memory, 0) if memory > 0 => memory.saturating_mul(2),
            (_, swap) => swap,
        },
        memory_reservation: host.memory_reservation,
        memory_swappiness: host.memory_swappiness.and_then(|value| u64::try_from(value).ok()),
        oom_kill_disable: host.oom_kill_disable == Some(true),
        oom_score_adj: host.oom_score_adj,
        pids_limit: host.pids_limit.unwrap_or_default(),
        block_io: Some(block_io(host)?)
            .filter(|limits| *limits != BlockIo::default())
            .map(Box::new),
        ..Resources::default()
    })
}

fn block_io(host: &HostConfig) -> Result<BlockIo> {
    let rates = |list: &Option<Vec<ThrottleDevice>>| -> Result<Vec<DeviceLimit>> {
        list.iter().flatten().map(|one| device_limit(&one.path, one.rate)).collect()
    };
    let weights = host.blkio_weight_device.iter().flatten();
    Ok(BlockIo {
        weight: host.blkio_weight,
        weights: weights
            .map(|one| device_limit(&one.path, one.weight.into()))
            .collect::<Result<_>>()?,
        read_bytes: rates(&host.blkio_device_read_bps)?,
        written_bytes: rates(&host.blkio_device_write_bps)?,
        reads: rates(&host.blkio_device_read_iops)?,
        writes: rates(&host.blkio_device_write_iops)?,
    })
}

/// The device whose node this is, with its limit.
fn device_limit(path: &str, value: u64) -> Result<DeviceLimit> {
    let metadata = fs::metadata(path).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("stat {path}: {why}"))
    })?;
    let number = metadata.rdev();
    Ok(DeviceLimit { major: rustix::fs::major(number), minor: rustix::fs::minor(number), value })
}

/// Of its processes. -1 is no limit.
pub(super) fn ulimits(host: &HostConfig) -> Vec<Ulimit> {
    let limit = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    let asked = host.ulimits.iter().flatten();
    asked
        .map(|asked| Ulimit {
            name: asked.name.to_ascii_lowercase(),
            soft: limit(asked.soft),
            hard: limit(asked.hard),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::host_config;

    #[test]
    fn limits_are_in_the_nodes_units() {
        let host = HostConfig {
            nano_cpus: 1_500_000_000,
            memory: 64 << 20,
            blkio_device_read_bps: Some(vec![ThrottleDevice { path: "/dev/null".into(), rate: 7 }]),
            ulimits: Some(vec![host_config::Ulimit { name: "Core".into(), hard: -1, soft: 0 }]),
            ..HostConfig::default()
        };
        let limits = resources(&host).unwrap();
        assert_eq!((limits.cpu_period, limits.cpu_quota), (100_000, 150_000));
        assert_eq!((limits.memory_limit, limits.memory_swap_limit), (64 << 20, 128 << 20));
        let rate = DeviceLimit { major: 1, minor: 3, value: 7 };
        assert_eq!(limits.block_io.unwrap().read_bytes, [rate]);
        let core = Ulimit { name: "core".into(), soft: 0, hard: u64::MAX };
        assert_eq!(ulimits(&host), [core]);
        let gone = ThrottleDevice { path: "/no/such".into(), rate: 1 };
        let host = HostConfig { blkio_device_write_iops: Some(vec![gone]), ..host };
        assert_eq!(
            resources(&host).unwrap_err().message,
            "stat /no/such: no such file or directory"
        );
    }
}
