//! Cgroups that systemd makes: one transient scope for every container, asked for over D-Bus (org.freedesktop.systemd1(5)).

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use zbus::zvariant::{OwnedObjectPath, Value};

use super::{Resources, limits::weight};

/// A manager that does not answer is a broken one.
const TIMEOUT: Duration = Duration::from_secs(30);

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
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[(&str, Value<'_>)]) -> zbus::Result<()>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// A connection to systemd.
#[derive(Clone, Debug)]
pub(crate) struct Scopes {
    manager: ManagerProxy<'static>,
}

impl Scopes {
    /// # Errors
    /// There is no system bus, or no systemd on it.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let connection = zbus::Connection::system().await.context("connect to the system bus")?;
        let manager = ManagerProxy::new(&connection).await?;
        manager.subscribe().await.context("subscribe to systemd's signals")?;
        Ok(Self { manager })
    }

    /// Makes the scope of the cgroup `path`, with the process `pid` in it: one without processes does not begin.
    pub(crate) async fn start(&self, path: &str, pid: u32, resources: &Resources) -> anyhow::Result<()> {
        let (slices, unit) = path.rsplit_once('/').context("a scope is in a slice")?;
        let slice = slices.rsplit('/').next().unwrap_or(slices);
        let mut properties = vec![
            ("Description", Value::from(format!("container {unit} of berth"))),
            ("Slice", Value::from(slice)),
            ("PIDs", Value::from(vec![pid])),
            // What is below it is berth's own.
            ("Delegate", Value::from(true)),
            ("DefaultDependencies", Value::from(false)),
            ("CollectMode", Value::from("inactive-or-failed")),
        ];
        properties.extend(ACCOUNTING.map(|name| (name, Value::from(true))));
        properties.extend(limits(resources));
        let done = async {
            let mut removed = self.manager.receive_job_removed().await?;
            let job = self.manager.start_transient_unit(unit, "replace", &properties, &[]).await?;
            while let Some(signal) = removed.next().await {
                let signal = signal.args()?;
                if *signal.job() == job {
                    return match signal.result().as_str() {
                        "done" => Ok(()),
                        result => bail!("its job ended with {result:?}"),
                    };
                }
            }
            bail!("systemd is gone")
        };
        let result = tokio::time::timeout(TIMEOUT, done).await.unwrap_or_else(|_| bail!("systemd does not answer"));
        result.with_context(|| format!("start {unit}"))
    }

    /// Tells systemd the limits too: it would write the earlier ones again whenever it is reloaded.
    pub(crate) async fn update(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let unit = path.rsplit('/').next().unwrap_or(path);
        let change = self.manager.set_unit_properties(unit, true, &limits(resources)).await;
        change.with_context(|| format!("change the limits of {unit}"))
    }

    /// Undoes an update from `before` to `after` that something else refused.
    pub(crate) async fn revert(&self, path: &str, before: &Resources, after: &Resources) -> anyhow::Result<()> {
        let unit = path.rsplit('/').next().unwrap_or(path);
        let change = self.manager.set_unit_properties(unit, true, &reverted(before, after)).await;
        change.with_context(|| format!("restore the limits of {unit}"))
    }

    /// Ends the scope of the cgroup `path`. Success when there is none.
    pub(crate) async fn stop(&self, path: &str) -> anyhow::Result<()> {
        let unit = path.rsplit('/').next().unwrap_or(path);
        match self.manager.stop_unit(unit, "replace").await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
            result => result.map(drop).with_context(|| format!("stop {unit}")),
        }
    }
}

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// So that systemd enables the controllers for the slices above.
const ACCOUNTING: [&str; 4] = ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"];

/// Limits in systemd.resource-control(5)'s words; what is not given is left out.
fn limits(resources: &Resources) -> Vec<(&'static str, Value<'static>)> {
    let mut limits = Vec::new();
    let mut set = |name, value: u64| limits.push((name, Value::from(value)));
    if resources.cpu_shares > 0 {
        set("CPUWeight", weight(resources.cpu_shares as u64));
    }
    let period = if resources.cpu_period > 0 { resources.cpu_period as u64 } else { 100_000 };
    if resources.cpu_quota != 0 {
        let per_second = u64::try_from(resources.cpu_quota).map_or(u64::MAX, |quota| quota * 1_000_000 / period);
        set("CPUQuotaPerSecUSec", per_second);
        set("CPUQuotaPeriodUSec", period);
    }
    if resources.memory_limit != 0 {
        set("MemoryMax", u64::try_from(resources.memory_limit).unwrap_or(u64::MAX));
    }
    for (file, value) in &resources.unified {
        let name = match file.as_str() {
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "pids.max" => "TasksMax",
            _ => continue,
        };
        // "max", and what the kernel will refuse.
        set(name, value.parse().unwrap_or(u64::MAX));
    }
    limits
}

/// The limits of `before`; what only `after` limits goes back to what systemd has when nothing was said.
fn reverted(before: &Resources, after: &Resources) -> Vec<(&'static str, Value<'static>)> {
    let mut limits_before = limits(before);
    for (name, _) in limits(after) {
        if limits_before.iter().all(|(known, _)| *known != name) {
            let default = if ["MemoryLow", "MemoryMin"].contains(&name) { 0 } else { u64::MAX };
            limits_before.push((name, Value::from(default)));
        }
    }
    limits_before
}

pub(super) fn unit(id: &str) -> String {
    format!("berth-{id}.scope")
}

/// Where systemd has a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)).
///
/// # Errors
/// What is not the name of a slice.
pub(super) fn slice_path(slice: &str) -> anyhow::Result<String> {
    let wrong = || format!("cgroup parent {slice:?} is not a slice, as the systemd driver wants it");
    let name = slice.strip_suffix(".slice").with_context(wrong)?;
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b":_.\\".contains(&b));
    if !name.split('-').all(plain) {
        bail!(wrong());
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Ok(ends.map(|end| format!("{}.slice", &name[..end])).collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_where_systemd_has_them() {
        assert_eq!(slice_path("a.slice").unwrap(), "a.slice");
        assert_eq!(slice_path("a-b_c-d.slice").unwrap(), "a.slice/a-b_c.slice/a-b_c-d.slice");
        for wrong in ["a", "-.slice", ".slice", "a--b.slice", "a-.slice", "a b.slice", "a/b.slice"] {
            assert!(slice_path(wrong).is_err(), "{wrong}");
        }
    }

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
        let low = Resources { unified: vec![("memory.low".into(), "4096".into())], ..resources.clone() };
        let back = reverted(&Resources { memory_limit: 7, ..Resources::default() }, &low);
        assert_eq!(back[0], ("MemoryMax", Value::from(7_u64)));
        assert!(
            back.contains(&("CPUWeight", Value::from(u64::MAX))) && back.contains(&("MemoryLow", Value::from(0_u64)))
        );
    }
}
