//! Exec probes as a kubelet sends them: one in each pod every second, each with a timeout of a
//! second. Both runtimes have their pods; they are probed in turn.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_tests::Cri;
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval_at};

use super::Findings;
use crate::{
    fleet::Fleet,
    options::Options,
    report::{Key, Part, Unit},
    rig::{Rig, Target},
    usage,
};

const PODS: usize = 100;
const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT_SECONDS: i64 = 1;
/// How often it is each runtime's turn.
const TURNS: u64 = 2;

pub(crate) async fn measure(rig: &Rig, options: &Options, findings: &mut Findings) -> Result<()> {
    let mut fleets = Vec::new();
    for target in &rig.targets {
        if let Some(pid) = target.pid() {
            usage::join_cgroup(&rig.machine.cgroup_parent, target.name, pid)?;
        }
        let mut fleet = Fleet::default();
        fleet.grow(target, (&rig.machine, &rig.image), PODS).await?;
        fleets.push((target, fleet));
    }
    for _ in 0..TURNS {
        for (target, fleet) in &fleets {
            turn(rig, target, fleet, (options.seconds / TURNS).max(1), findings).await;
        }
    }
    for (target, fleet) in fleets {
        fleet.end(target).await?;
    }
    Ok(())
}

/// Probes all pods of one runtime for so many seconds.
async fn turn(rig: &Rig, target: &Target, fleet: &Fleet, seconds: u64, findings: &mut Findings) {
    // Of the whole cgroup, in which the other runtime has nothing to do now.
    let cgroup_cpu = || usage::cgroup_cpu_ms(&rig.machine.cgroup_parent);
    let daemon_cpu = || target.pid().map(usage::precise_cpu_ms);
    let before = (daemon_cpu(), cgroup_cpu(), usage::machine_cpu_ms());
    let begun = Instant::now();
    let probes = fleet.pods.iter().enumerate().map(|(number, pod)| {
        // Spread over the interval, as the kubelet's are by the times at which pods started.
        let after = INTERVAL * number as u32 / PODS as u32;
        probe(&target.cri, &pod.container, after, seconds)
    });
    let all: Vec<Vec<Option<Duration>>> = join_all(probes).await;
    let elapsed = begun.elapsed().as_secs_f64() * 1000.0;
    let after = (daemon_cpu(), cgroup_cpu(), usage::machine_cpu_ms());

    let mut add = |name: &str, unit, value: f64| {
        findings.samples.add(&Key::new(Part::Probes, name, unit), target.name, value);
    };
    let share = |before: f64, after: f64| (after - before) / elapsed * 100.0;
    if let (Some(earlier), Some(later)) = (before.0, after.0) {
        let daemon = share(earlier, later);
        add("CPU of the daemon", Unit::PercentOfACore, daemon);
        let others = share(before.1, after.1) - daemon;
        add("CPU of shims and what they run", Unit::PercentOfACore, others);
    }
    let machine = "CPU of the machine, client included";
    add(machine, Unit::PercentOfACore, share(before.2, after.2));
    let good: Vec<Duration> = all.iter().flatten().flatten().copied().collect();
    let due = PODS as f64 * seconds as f64;
    add("probes that succeeded, of those due", Unit::Percent, good.len() as f64 / due * 100.0);
    for time in good {
        add("probe", Unit::Milliseconds, time.as_secs_f64() * 1000.0);
    }
}

/// Probes one container; returns the time of each probe, and None for one that failed. Like a
/// kubelet it skips those that are due while one still runs.
async fn probe(cri: &Cri, container: &str, after: Duration, seconds: u64) -> Vec<Option<Duration>> {
    let begin = tokio::time::Instant::now() + after;
    let end = begin + Duration::from_secs(seconds);
    let mut ticks = interval_at(begin, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut times = Vec::new();
    while ticks.tick().await < end {
        let begun = Instant::now();
        let result = cri.exec(container, &["true"], TIMEOUT_SECONDS).await;
        let good = result.is_ok_and(|response| response.exit_code == 0);
        times.push(good.then(|| begun.elapsed()));
    }
    times
}
