//! What a container may do with block devices: its share of each, and rates.

use std::{fs, path::PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::hierarchies::Hierarchies;

/// Limits for block devices; 0 and empty mean: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// Its share beside others, 10 to 1000.
    pub weight: u16,
    /// The same, for single devices.
    pub weights: Vec<DeviceLimit>,
    /// Bytes in a second.
    pub read_bytes: Vec<DeviceLimit>,
    pub written_bytes: Vec<DeviceLimit>,
    /// Operations in a second.
    pub reads: Vec<DeviceLimit>,
    pub writes: Vec<DeviceLimit>,
}

/// A limit for one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimit {
    pub major: u32,
    pub minor: u32,
    /// A weight; or a rate, of which 0 is none.
    pub value: u64,
}

impl BlockIo {
    /// These, with what `change` gives instead.
    pub(super) fn changed(&self, change: Self) -> Self {
        let list = |new: Vec<DeviceLimit>, old: &Vec<DeviceLimit>| {
            if new.is_empty() { old.clone() } else { new }
        };
        Self {
            weight: if change.weight == 0 { self.weight } else { change.weight },
            weights: list(change.weights, &self.weights),
            read_bytes: list(change.read_bytes, &self.read_bytes),
            written_bytes: list(change.written_bytes, &self.written_bytes),
            reads: list(change.reads, &self.reads),
            writes: list(change.writes, &self.writes),
        }
    }
}

impl Hierarchies {
    /// Sets these limits of the cgroup `path`.
    ///
    /// # Errors
    /// The kernel refuses one, or cannot do that at all.
    pub(super) fn limit_block_io(&self, path: &str, block_io: &BlockIo) -> anyhow::Result<()> {
        for (file, text) in self.writes(path, block_io) {
            fs::write(&file, &text)
                .with_context(|| format!("write {text:?} to {}", file.display()))?;
        }
        Ok(())
    }

    /// The files to write, each with its content.
    fn writes(&self, path: &str, block_io: &BlockIo) -> Vec<(PathBuf, String)> {
        let directory = self.directory("blkio", path);
        // The scheduler BFQ has weights of its own, in the range of v1.
        let bfq = directory.join(self.name("io.bfq.weight", "blkio.bfq.weight"));
        let has_bfq = bfq.exists();
        let weight = match has_bfq {
            true => bfq,
            false => directory.join(self.name("io.weight", "blkio.weight")),
        };
        let of_device = match (self.is_v2, has_bfq) {
            (true, _) => weight.clone(),
            (false, true) => directory.join("blkio.bfq.weight_device"),
            (false, false) => directory.join("blkio.weight_device"),
        };
        let scaled = |value: u64| match self.is_v2 && !has_bfq {
            true => io_weight(value),
            false => value,
        };
        let mut writes = Vec::new();
        if block_io.weight > 0 {
            writes.push((weight, scaled(block_io.weight.into()).to_string()));
        }
        for DeviceLimit { major, minor, value } in &block_io.weights {
            writes.push((of_device.clone(), format!("{major}:{minor} {}", scaled(*value))));
        }
        for (limits, v1, v2) in [
            (&block_io.read_bytes, "read_bps", "rbps"),
            (&block_io.written_bytes, "write_bps", "wbps"),
            (&block_io.reads, "read_iops", "riops"),
            (&block_io.writes, "write_iops", "wiops"),
        ] {
            for DeviceLimit { major, minor, value } in limits {
                writes.push(match (self.is_v2, value) {
                    (true, 0) => (directory.join("io.max"), format!("{major}:{minor} {v2}=max")),
                    (true, rate) => {
                        (directory.join("io.max"), format!("{major}:{minor} {v2}={rate}"))
                    }
                    (false, rate) => (
                        directory.join(format!("blkio.throttle.{v1}_device")),
                        format!("{major}:{minor} {rate}"),
                    ),
                });
            }
        }
        writes
    }
}

/// The weight of v2 (1..=10000) for one of v1 (10..=1000): what runc and crun make of it.
pub(super) fn io_weight(weight: u64) -> u64 {
    1 + (weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_told_the_same() {
        let limit = |value| vec![DeviceLimit { major: 8, minor: 0, value }];
        let block_io = BlockIo {
            weight: 500,
            weights: limit(10),
            read_bytes: limit(1024),
            writes: limit(0),
            ..BlockIo::default()
        };
        let host = |is_v2| Hierarchies {
            is_v2,
            ..Hierarchies::detect(berth_base::config::Driver::Cgroupfs)
        };
        let writes = |is_v2| -> Vec<(String, String)> {
            let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            let writes = host(is_v2).writes("no/such", &block_io).into_iter();
            writes.map(|(path, text)| (name(path), text)).collect()
        };
        let owned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect()
        };
        assert_eq!(
            writes(false),
            owned(&[
                ("blkio.weight", "500"),
                ("blkio.weight_device", "8:0 10"),
                ("blkio.throttle.read_bps_device", "8:0 1024"),
                ("blkio.throttle.write_iops_device", "8:0 0"),
            ])
        );
        assert_eq!(
            writes(true),
            owned(&[
                ("io.weight", "4950"),
                ("io.weight", "8:0 1"),
                ("io.max", "8:0 rbps=1024"),
                ("io.max", "8:0 wiops=max"),
            ])
        );
    }
}
