//! Date, machine and versions.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

/// The date in UTC, as 2026-11-28.
pub(crate) fn date() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%F"]).output().context("run date")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Processor, memory and kernel.
pub(crate) fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let processor = field("/proc/cpuinfo", "model name")?;
    let kibibytes: f64 = field("/proc/meminfo", "MemTotal")?.trim_end_matches(" kB").parse()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let memory = (kibibytes / f64::from(1 << 20)).round();
    Ok(format!("{processor}, {cores} cores, {memory} GiB · Linux {}", kernel.trim()))
}

/// The versions of containerd and runc, from the file by which they are built: built from modules,
/// they do not know them.
pub(crate) fn peer() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/tools/peer/go.mod");
    let path = path.display().to_string();
    let version = |module: &str| -> Result<String> {
        let text = fs::read_to_string(&path)?;
        let line =
            text.lines().find_map(|line| line.trim().strip_prefix(module)?.strip_prefix(" v"));
        let line = line.with_context(|| format!("{path} does not name {module}"))?;
        Ok(line.split(' ').next().unwrap_or_default().to_owned())
    };
    let runc = version("github.com/opencontainers/runc")?;
    Ok(format!("{} with runc {runc}", version("github.com/containerd/containerd/v2")?))
}

/// The first value of a field in a file of /proc.
fn field(path: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    Ok(value.map_or("unknown", |(_, value)| value.trim()).to_owned())
}
