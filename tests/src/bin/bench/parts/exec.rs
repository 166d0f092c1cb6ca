//! ExecSync in a container that stays: its latency, and how many a second get through.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_tests::Cri;
use futures_util::future::try_join_all;

use super::Findings;
use crate::{
    fleet,
    options::Options,
    report::{Key, Part, Unit},
    rig::Rig,
};

/// Of one that takes milliseconds there may be more samples than of a pod's life.
const FACTOR: usize = 4;

pub(crate) async fn measure(rig: &Rig, options: &Options, findings: &mut Findings) -> Result<()> {
    let mut pods = Vec::new();
    for target in &rig.targets {
        let pod = fleet::run(target, &rig.machine, &rig.image, format!("exec-{}", target.name));
        pods.push((target, pod.await?));
    }
    for at_once in &options.at_once {
        let latency = Key::new(Part::Exec, "ExecSync", Unit::Milliseconds).at(*at_once);
        let rate = Key::new(Part::Exec, "ExecSync, how many", Unit::PerSecond).at(*at_once);
        for _ in 0..(FACTOR * options.rounds).div_ceil(*at_once) {
            for (target, pod) in &pods {
                let begun = Instant::now();
                let execs = (0..*at_once).map(|_| one(&target.cri, &pod.container));
                for time in try_join_all(execs).await? {
                    findings.samples.add_time(&latency, target.name, time);
                }
                let second = *at_once as f64 / begun.elapsed().as_secs_f64();
                findings.samples.add(&rate, target.name, second);
            }
        }
    }
    for (target, pod) in pods {
        fleet::remove(target, pod.sandbox).await?;
    }
    Ok(())
}

async fn one(cri: &Cri, container: &str) -> Result<Duration> {
    let begun = Instant::now();
    cri.exec(container, &["true"], 10).await?;
    Ok(begun.elapsed())
}
