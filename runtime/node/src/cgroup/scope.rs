//! Cgroups that systemd makes: a transient scope for every container, asked for over D-Bus
//! (org.freedesktop.systemd1(5)).

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use zbus::zvariant::{OwnedObjectPath, Value};

use super::{
    block_io::io_weight,
    resources::{Resources, cpu_weight},
};

/// How long systemd may take to make a scope.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Microseconds of a period of the CPU quota if none is given, as in the kernel.
const DEFAULT_CPU_PERIOD: u64 = 100_000;
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// Properties that make systemd enable the controllers in the slices above.
const ACCOUNTING: [&str; 4] =
    ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"];

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        auxiliary: &[(&str, &[(&str, Value<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;
    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Value<'_>)],
    ) -> zbus::Result<()>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// A connection to systemd.
#[derive(Clone, Debug)]
pub struct Scopes {
    manager: ManagerProxy<'static>,
}

impl Scopes {
    /// # Errors
    /// There is no system bus, or no systemd on it.
    pub async fn connect() -> anyhow::Result<Self> {
        let connection = zbus::Connection::system().await.context("connect to the system bus")?;
        let manager = ManagerProxy::new(&connection).await?;
        // systemd sends signals about jobs only as long as somebody has subscribed.
        manager.subscribe().await.context("subscribe to systemd's signals")?;
        Ok(Self { manager })
    }

    /// Makes the scope of the cgroup `path` with the process `pid` in it: systemd makes no scope
    /// without a process.
    pub async fn start(&self, path: &str, pid: u32, resources: &Resources) -> anyhow::Result<()> {
        let (slices, unit) = path.rsplit_once('/').context("a scope is in a slice")?;
        let slice = slices.rsplit('/').next().unwrap_or(slices);
        let mut properties = vec![
            ("Description", Value::from(format!("container {unit} of berth"))),
            ("Slice", Value::from(slice)),
            ("PIDs", Value::from(vec![pid])),
            // The cgroups below it are berth's own, and systemd leaves them alone.
            ("Delegate", Value::from(true)),
            // By default systemd ends a scope at the beginning of a shutdown (systemd.scope(5));
            // when a container ends is for the kubelet to say.
            ("DefaultDependencies", Value::from(false)),
            // A scope whose process was killed by the OOM killer has failed, and would stay.
            ("CollectMode", Value::from("inactive-or-failed")),
        ];
        properties.extend(ACCOUNTING.map(|name| (name, Value::from(true))));
        properties.extend(limits(resources));
        tokio::time::timeout(TIMEOUT, self.start_unit(unit, &properties))
            .await
            .unwrap_or_else(|_| bail!("systemd does not answer"))
            .with_context(|| format!("start {unit}"))
    }

    /// Starts a unit and waits for the end of its job.
    async fn start_unit(&self, unit: &str, properties: &[(&str, Value<'_>)]) -> anyhow::Result<()> {
        // Before the job begins, so that its end is not missed.
        let mut removed = self.manager.receive_job_removed().await?;
        let job = self.manager.start_transient_unit(unit, "replace", properties, &[]).await?;
        while let Some(signal) = removed.next().await {
            let signal = signal.args()?;
            if *signal.job() == job {
                return match signal.result().as_str() {
                    "done" => Ok(()),
                    result => bail!("its job ended with {result:?}"),
                };
            }
        }
        bail!("the connection to systemd ended")
    }

    /// Tells systemd the limits of a scope. They are in force already; but whenever systemd is
    /// reloaded it writes those that it knows.
    pub async fn update(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let unit = unit(path);
        let change = self.manager.set_unit_properties(unit, true, &limits(resources)).await;
        change.with_context(|| format!("change the limits of {unit}"))
    }

    /// Undoes an update from `before` to `after` that the kernel refused.
    pub async fn revert(
        &self,
        path: &str,
        before: &Resources,
        after: &Resources,
    ) -> anyhow::Result<()> {
        let unit = unit(path);
        let change = self.manager.set_unit_properties(unit, true, &reverted(before, after)).await;
        change.with_context(|| format!("restore the limits of {unit}"))
    }

    /// Ends the scope of the cgroup `path`. Success when there is none.
    pub async fn stop(&self, path: &str) -> anyhow::Result<()> {
        let unit = unit(path);
        match self.manager.stop_unit(unit, "replace").await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
            result => result.map(drop).with_context(|| format!("stop {unit}")),
        }
    }
}

fn unit(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Limits as properties of systemd.resource-control(5). Those that are not given are left out.
fn limits(resources: &Resources) -> Vec<(&'static str, Value<'static>)> {
    let mut limits = Vec::new();
    let mut set = |name, value: u64| limits.push((name, Value::from(value)));
    if resources.cpu_shares > 0 {
        set("CPUWeight", cpu_weight(resources.cpu_shares as u64));
    }
    if resources.cpu_quota != 0 {
        let period = match resources.cpu_period {
            1.. => resources.cpu_period as u64,
            _ => DEFAULT_CPU_PERIOD,
        };
        // -1 is no limit, which systemd calls infinity and writes as the largest number.
        let per_second =
            u64::try_from(resources.cpu_quota).map_or(u64::MAX, |quota| quota * 1_000_000 / period);
        set("CPUQuotaPerSecUSec", per_second);
        set("CPUQuotaPeriodUSec", period);
    }
    if resources.memory_limit != 0 {
        set("MemoryMax", u64::try_from(resources.memory_limit).unwrap_or(u64::MAX));
    }
    if resources.memory_reservation > 0 {
        set("MemoryLow", resources.memory_reservation as u64);
    }
    if resources.pids_limit != 0 {
        set("TasksMax", u64::try_from(resources.pids_limit).unwrap_or(u64::MAX));
    }
    if let Some(block_io) = resources.block_io.as_ref().filter(|block_io| block_io.weight > 0) {
        set("IOWeight", io_weight(block_io.weight.into()));
    }
    for (file, value) in &resources.unified {
        let name = match file.as_str() {
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "pids.max" => "TasksMax",
            _ => continue,
        };
        // "max" is no limit; anything else that is not a number the kernel refuses.
        set(name, value.parse().unwrap_or(u64::MAX));
    }
    limits
}

/// The limits of `before`. What only `after` limits goes back to systemd's default.
fn reverted(before: &Resources, after: &Resources) -> Vec<(&'static str, Value<'static>)> {
    let mut reverted = limits(before);
    for (name, _) in limits(after) {
        if reverted.iter().all(|(known, _)| *known != name) {
            // Protection is 0 by default, limits are infinite.
            let default = if ["MemoryLow", "MemoryMin"].contains(&name) { 0 } else { u64::MAX };
            reverted.push((name, Value::from(default)));
        }
    }
    reverted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_systemds_names() {
        let resources = Resources {
            cpu_shares: 1024,
            cpu_quota: 50_000,
            memory_limit: 1 << 20,
            unified: vec![("memory.high".into(), "4096".into()), ("pids.max".into(), "max".into())],
            ..Resources::default()
        };
        let expected = [
            ("CPUWeight", 100),
            ("CPUQuotaPerSecUSec", 500_000),
            ("CPUQuotaPeriodUSec", 100_000),
            ("MemoryMax", 1 << 20),
            ("MemoryHigh", 4096),
            ("TasksMax", u64::MAX),
        ];
        assert_eq!(limits(&resources), expected.map(|(name, value)| (name, Value::from(value))));
        assert!(limits(&Resources::default()).is_empty());
        let low =
            Resources { unified: vec![("memory.low".into(), "4096".into())], ..resources.clone() };
        let back = reverted(&Resources { memory_limit: 7, ..Resources::default() }, &low);
        assert_eq!(back[0], ("MemoryMax", Value::from(7_u64)));
        assert!(
            back.contains(&("CPUWeight", Value::from(u64::MAX)))
                && back.contains(&("MemoryLow", Value::from(0_u64)))
        );
    }
}
