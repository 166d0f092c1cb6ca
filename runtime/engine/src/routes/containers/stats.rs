//! `GET /containers/{name}/stats`.

use std::{fs, sync::Arc, time::Duration};

use berth_base::{blocking::spawn_blocking, clock::now};
use berth_node::{
    cgroup::{Details, DeviceIo, Usage},
    stats::{Interface, interfaces},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, Value, json};

use super::{Call, slashed};
use crate::{
    container::{life, object::Container},
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    time::{NEVER, rfc3339_nano},
};

/// How far two samples of a stream are apart.
const INTERVAL: Duration = Duration::from_secs(1);
/// The kernel's clock ticks in a second, as it shows times to programs (time(7)).
const TICKS: u64 = 100;

pub(in crate::routes) async fn stats(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, version, query, .. } = call;
    let is_stream = query.get("stream").is_empty() || query.flag("stream");
    let is_one_shot = version >= Version(41) && query.flag("one-shot");
    let container = engine.containers.find(name)?;
    if is_stream && is_one_shot {
        return Err(Failure::bad_request("cannot have stream=true and one-shot=true"));
    }
    let mut sampler = Sampler { engine, container, before: None };
    if is_stream {
        return Ok(body::streaming("application/json", lines(sampler)));
    }
    let first = sampler.next(!is_one_shot).await;
    if is_one_shot || sampler.before.is_none() {
        return Ok(body::ok(&first));
    }
    // A rate needs two of them.
    tokio::time::sleep(INTERVAL).await;
    Ok(body::ok(&sampler.next(true).await))
}

/// One sample a second, until the container is removed.
fn lines(sampler: Sampler) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    let ticks = tokio::time::interval(INTERVAL);
    stream::unfold((sampler, ticks), |(mut sampler, mut ticks)| async {
        let mut state = sampler.container.watch();
        tokio::select! {
            _ = ticks.tick() => {}
            _ = state.wait_for(|state| state.is_removed()) => return None,
        }
        let line = format!("{}\n", sampler.next(true).await);
        Some((Ok(Bytes::from(line)), (sampler, ticks)))
    })
}

/// What one client has got of a container.
struct Sampler {
    engine: Arc<Engine>,
    container: Arc<Container>,
    /// The time and the CPU of the sample before.
    before: Option<(String, Value)>,
}

impl Sampler {
    /// The next sample, with that before it. `is_named` is false for the one shot, which does not
    /// say whose it is.
    async fn next(&mut self, is_named: bool) -> Value {
        let sample = self.sample().await;
        let mut answer = match &sample {
            Some(sample) => sample.to_json(),
            None => nothing(),
        };
        if is_named || sample.is_none() {
            answer["name"] = slashed(&self.container).into();
            answer["id"] = self.container.id.clone().into();
        }
        let before = sample.map(|sample| (sample.read.clone(), sample.cpu()));
        if let Some((read, cpu)) = std::mem::replace(&mut self.before, before) {
            answer["preread"] = read.into();
            answer["precpu_stats"] = cpu;
        }
        answer
    }

    /// `None` unless it runs.
    async fn sample(&self) -> Option<Sample> {
        let engine = self.engine.clone();
        let run = life::running(&engine, &self.container)?;
        let namespace =
            engine.node.sandboxes.find(&self.container.id).ok().and_then(|pod| pod.meta.netns());
        let sampling = spawn_blocking(move || {
            let host = &engine.node.host;
            let cgroup = &run.meta.cgroup;
            Some(Sample {
                read: rfc3339_nano(now()),
                usage: run.stats(host).ok()?.usage,
                details: host.cgroups.details(cgroup),
                memory: host.cgroups.memory_stat(cgroup),
                per_cpu: host.cgroups.cpu_nanos_each(cgroup),
                is_v2: host.cgroups.is_v2,
                interfaces: interfaces(vec![namespace]).pop().unwrap_or_default(),
                machine: Machine::read(),
            })
        });
        sampling.await.ok().flatten()
    }
}

struct Sample {
    read: String,
    usage: Usage,
    details: Details,
    memory: Map<String, Value>,
    /// Empty where the kernel does not count by CPU.
    per_cpu: Vec<u64>,
    is_v2: bool,
    interfaces: Vec<Interface>,
    machine: Machine,
}

impl Sample {
    fn to_json(&self) -> Value {
        let mut pids = Map::new();
        if let Some(tasks) = self.details.tasks {
            pids.insert("current".to_owned(), tasks.into());
        }
        if let Some(limit) = self.details.max_tasks {
            pids.insert("limit".to_owned(), limit.into());
        }
        let mut answer = json!({
            "read": self.read,
            "preread": NEVER,
            "pids_stats": pids,
            "blkio_stats": self.block_io(),
            "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": self.cpu(),
            "precpu_stats": no_cpu(),
            "memory_stats": self.memory(),
        });
        if !self.interfaces.is_empty() {
            let networks = self.interfaces.iter().map(|one| (one.name.clone(), network(one)));
            answer["networks"] = networks.collect::<Map<_, _>>().into();
        }
        answer
    }

    fn cpu(&self) -> Value {
        let details = &self.details;
        let mut usage = json!({
            "total_usage": self.usage.cpu_nanos,
            "usage_in_kernelmode": details.system_nanos,
            "usage_in_usermode": details.user_nanos,
        });
        if !self.per_cpu.is_empty() {
            usage["percpu_usage"] = self.per_cpu.clone().into();
        }
        json!({
            "cpu_usage": usage,
            "system_cpu_usage": self.machine.cpu_nanos,
            "online_cpus": self.machine.cpus,
            "throttling_data": {
                "periods": details.periods,
                "throttled_periods": details.throttled_periods,
                "throttled_time": details.throttled_nanos,
            },
        })
    }

    fn memory(&self) -> Value {
        let mut memory = json!({
            "usage": self.usage.memory,
            "stats": self.memory,
            // Without a limit of its own it has all of the machine.
            "limit": self.usage.memory_limit.unwrap_or(u64::MAX).min(self.machine.memory),
        });
        if !self.is_v2 {
            memory["max_usage"] = self.details.max_memory.into();
            if self.details.limit_hits > 0 {
                memory["failcnt"] = self.details.limit_hits.into();
            }
        }
        memory
    }

    fn block_io(&self) -> Value {
        let names = if self.is_v2 { ["read", "write"] } else { ["Read", "Write"] };
        let list = |of: fn(&DeviceIo) -> [u64; 2]| {
            let entries = self.details.devices.iter().flat_map(|(device, io)| {
                let (major, minor) = device.split_once(':').unwrap_or((device, "0"));
                let number = |text: &str| text.parse::<u64>().unwrap_or(0);
                let (major, minor) = (number(major), number(minor));
                names.into_iter().zip(of(io)).map(move |(op, value)| {
                    json!({ "major": major, "minor": minor, "op": op, "value": value })
                })
            });
            entries.collect::<Vec<Value>>()
        };
        let bytes = list(|io| [io.read_bytes, io.written_bytes]);
        let operations = list(|io| [io.reads, io.writes]);
        // v2 has none of the others, and says so by null.
        let rest = if self.is_v2 { Value::Null } else { json!([]) };
        json!({
            "io_service_bytes_recursive": bytes,
            "io_serviced_recursive": if self.is_v2 { Value::Null } else { operations.into() },
            "io_queue_recursive": rest,
            "io_service_time_recursive": rest,
            "io_wait_time_recursive": rest,
            "io_merged_recursive": rest,
            "io_time_recursive": rest,
            "sectors_recursive": rest,
        })
    }
}

fn network(interface: &Interface) -> Value {
    let Interface { received, sent, .. } = interface;
    json!({
        "rx_bytes": received.bytes,
        "rx_packets": received.packets,
        "rx_errors": received.errors,
        "rx_dropped": received.dropped,
        "tx_bytes": sent.bytes,
        "tx_packets": sent.packets,
        "tx_errors": sent.errors,
        "tx_dropped": sent.dropped,
    })
}

fn no_cpu() -> Value {
    json!({
        "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
        "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
    })
}

/// What is answered of a container that does not run.
fn nothing() -> Value {
    json!({
        "read": NEVER,
        "preread": NEVER,
        "pids_stats": {},
        "blkio_stats": {
            "io_service_bytes_recursive": null,
            "io_serviced_recursive": null,
            "io_queue_recursive": null,
            "io_service_time_recursive": null,
            "io_wait_time_recursive": null,
            "io_merged_recursive": null,
            "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": no_cpu(),
        "precpu_stats": no_cpu(),
        "memory_stats": {},
    })
}

/// What all containers share.
struct Machine {
    cpus: usize,
    /// Time of all CPUs since boot, whatever they did, idle included.
    cpu_nanos: u64,
    /// Bytes.
    memory: u64,
}

impl Machine {
    fn read() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::parse(&stat, &memory)
    }

    /// proc_stat(5) and proc_meminfo(5).
    fn parse(stat: &str, memory: &str) -> Self {
        let mut lines = stat.lines().take_while(|line| line.starts_with("cpu"));
        let all = lines.next().unwrap_or_default();
        // Without the time of guests, which is in that of users already.
        let ticks = all.split_whitespace().skip(1).take(7);
        let total: u64 = ticks.filter_map(|word| word.parse::<u64>().ok()).sum();
        let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kibibytes = memory.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            cpus: lines.count(),
            cpu_nanos: total * (1_000_000_000 / TICKS),
            memory: kibibytes.unwrap_or(0) * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_as_the_kernel_shows_it() {
        let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 1 1\ncpu1 1 1 1\nintr 5\n";
        let machine = Machine::parse(stat, "MemTotal:  2048 kB\nMemFree: 1 kB\n");
        assert_eq!((machine.cpus, machine.cpu_nanos), (2, 280_000_000));
        assert_eq!(machine.memory, 2 << 20);
    }
}
