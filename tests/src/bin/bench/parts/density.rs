//! What a pod costs as pods grow: memory, the latency of one more, and the daemon's restart.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_tests::Machine;

use super::Findings;
use crate::{
    fleet::{self, Fleet},
    options::Options,
    report::{Key, Part, Unit},
    rig::{Rig, Target},
    usage,
};

/// Pods that come and go at each number of pods.
const GUESTS: usize = 10;
const RESTARTS: usize = 3;
/// With fewer pods the kernel's memory has more noise than cost.
const ENOUGH: usize = 20;

/// Density, restart, or both, at each number of pods.
pub(crate) async fn measure(
    rig: &mut Rig,
    options: &Options,
    findings: &mut Findings,
) -> Result<()> {
    let mut counts = options.pods.clone();
    counts.sort_unstable();
    let mut fleets: Vec<Fleet> = rig.targets.iter().map(|_| Fleet::default()).collect();
    // The kernel's memory is that of all. What it grows by while one runtime makes pods is that
    // runtime's.
    let mut kernel = vec![0.0; fleets.len()];
    let others = fleets.len() > 1;
    for count in counts {
        for (index, fleet) in fleets.iter_mut().enumerate() {
            let before = usage::kernel_memory();
            let target = &rig.targets[index];
            fleet.grow(target, (&rig.machine, &rig.image), count).await?;
            if others {
                settle().await;
            }
            kernel[index] += usage::kernel_memory() - before;
        }
        if options.wants(Part::Density) {
            for (target, kernel) in rig.targets.iter().zip(&kernel) {
                memory(target, &rig.machine, (count, *kernel), findings);
            }
            guests(rig, count, findings).await?;
        }
        if options.wants(Part::Restart) {
            restarts(rig, count, findings).await?;
        }
    }
    Ok(())
}

fn memory(
    target: &Target,
    machine: &Machine,
    (count, kernel): (usize, f64),
    findings: &mut Findings,
) {
    let Some(pid) = target.pid() else { return };
    let mut add = |name: &str, kibibytes: f64| {
        let key = Key::new(Part::Density, name, Unit::Kibibytes).at(count);
        findings.samples.add(&key, target.name, kibibytes);
    };
    let daemon = usage::memory(pid, "Rss:");
    let shims = target.shims(machine);
    let sum = |field: &str| shims.iter().map(|pid| usage::memory(*pid, field)).sum::<f64>();
    let of_pod = |all: f64| all / count as f64;
    add("daemon's memory", daemon);
    let private = sum("Private_Clean:") + sum("Private_Dirty:");
    add("shims' private memory, each pod", of_pod(private));
    // A page that many have is counted by its share.
    let shares = sum("Pss:");
    add("shims' memory, each pod", of_pod(shares));
    if count >= ENOUGH {
        add("kernel's memory, each pod", of_pod(kernel));
        add("all memory, each pod", of_pod(daemon + shares + kernel));
    }
}

/// One more pod, several times.
async fn guests(rig: &Rig, count: usize, findings: &mut Findings) -> Result<()> {
    let key = Key::new(Part::Density, "one more pod: run, create, start", Unit::Milliseconds);
    let key = key.at(count);
    let alone = Key::new(Part::Density, "RunPodSandbox", Unit::Milliseconds).at(count);
    for number in 0..GUESTS {
        for target in &rig.targets {
            let begun = Instant::now();
            let name = format!("guest-{}-{count}-{number}", target.name);
            let (pod, sandbox) = fleet::timed(target, &rig.machine, &rig.image, name).await?;
            findings.samples.add_time(&key, target.name, begun.elapsed());
            findings.samples.add_time(&alone, target.name, sandbox);
            fleet::remove(target, pod.sandbox).await?;
        }
    }
    Ok(())
}

async fn restarts(rig: &mut Rig, count: usize, findings: &mut Findings) -> Result<()> {
    let key = Key::new(Part::Restart, "kill -9 to a full list", Unit::Milliseconds).at(count);
    let others = rig.targets.len() > 1;
    for _ in 0..RESTARTS {
        for target in &mut rig.targets {
            if others {
                settle().await;
            }
            if let Some(time) = target.restart(&rig.machine, count).await? {
                findings.samples.add_time(&key, target.name, time);
            }
        }
    }
    Ok(())
}

/// Waits until the machine has next to nothing to do: what a runtime does behind its answers, as
/// after a restart with many pods, is not to be on the account of the one whose turn comes next.
async fn settle() {
    const LOOK: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut idle = false;
    while !idle && Instant::now() < deadline {
        let before = usage::machine_cpu_ms();
        tokio::time::sleep(LOOK).await;
        // A fifth of a core: there is always somebody else.
        idle = usage::machine_cpu_ms() - before <= 20.0;
    }
}
