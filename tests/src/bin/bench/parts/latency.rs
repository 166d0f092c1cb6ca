//! A pod's life, verb by verb: one at a time, and several at once.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use berth_proto::v1;
use berth_tests::{Machine, container, pod};
use futures_util::future::try_join_all;

use super::Findings;
use crate::{
    fleet::sleeper,
    options::Options,
    report::{Key, Part, Unit},
    rig::{Rig, Target, create},
};

/// Mounts and variables of the container that has all.
const MOUNTS: usize = 20;
const VARIABLES: usize = 30;

pub(crate) async fn measure(rig: &Rig, options: &Options, findings: &mut Findings) -> Result<()> {
    for number in 0..MOUNTS {
        fs::create_dir_all(rig.machine.path(&format!("volumes/{number}")))?;
    }
    for target in &rig.targets {
        life(target, rig, "warm-up".to_owned()).await?;
    }
    for at_once in &options.at_once {
        for round in 0..options.rounds.div_ceil(*at_once) {
            for target in &rig.targets {
                let name = |number| format!("life-{}-{at_once}-{round}-{number}", target.name);
                let lives = (0..*at_once).map(|number| life(target, rig, name(number)));
                for (verb, time) in try_join_all(lives).await?.into_iter().flatten() {
                    let key = Key::new(Part::Latency, verb, Unit::Milliseconds).at(*at_once);
                    findings.samples.add_time(&key, target.name, time);
                }
            }
        }
    }
    Ok(())
}

/// What a verb took, in the order of a pod's life.
type Laps = Vec<(&'static str, Duration)>;

/// One pod with one container after another, from RunPodSandbox to removal.
async fn life(target: &Target, rig: &Rig, name: String) -> Result<Laps> {
    let cri = &target.cri;
    let image = &rig.image;
    let mut laps = Laps::new();
    let mut clock = Instant::now();
    let mut lap = |verb| {
        laps.push((verb, clock.elapsed()));
        clock = Instant::now();
    };
    cri.pull(image).await?;
    lap("PullImage, there already");
    let config = pod(&rig.machine, &name);
    let sandbox = cri.run_pod(config.clone()).await?;
    lap("RunPodSandbox");
    let id = create(cri, &sandbox, &config, sleeper("c", image)).await?;
    lap("CreateContainer");
    cri.start(&id).await?;
    lap("StartContainer");
    cri.exec(&id, &["true"], 10).await?;
    lap("ExecSync");
    cri.stop(&id, 0).await?;
    lap("StopContainer");
    cri.remove(&id).await?;
    lap("RemoveContainer");
    let id = create(cri, &sandbox, &config, with_all(&rig.machine, target, image)).await?;
    lap("CreateContainer, with all");
    cri.start(&id).await?;
    lap("StartContainer, with all");
    cri.stop(&id, 0).await?;
    cri.remove(&id).await?;
    lap("");
    cri.stop_pod(&sandbox).await?;
    lap("StopPodSandbox");
    cri.remove_pod(&sandbox).await?;
    lap("RemovePodSandbox");
    laps.retain(|(verb, _)| !verb.is_empty());
    Ok(laps)
}

/// A container like those of real clusters: the default seccomp profile, mounts, variables and
/// limits. runc as built from a Go module has no seccomp support, so that berth does more here.
fn with_all(machine: &Machine, target: &Target, image: &str) -> v1::ContainerConfig {
    let mut config = container("all", image, "exec sleep 1000");
    let mount = |number: usize| v1::Mount {
        host_path: machine.path(&format!("volumes/{number}")).display().to_string(),
        container_path: format!("/volumes/{number}"),
        readonly: number.is_multiple_of(2),
        ..v1::Mount::default()
    };
    config.mounts = (0..MOUNTS).map(mount).collect();
    let variable =
        |number| v1::KeyValue { key: format!("VARIABLE_{number}"), value: b"some value".to_vec() };
    config.envs = (0..VARIABLES).map(variable).collect();
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 200_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 256 << 20,
        ..Default::default()
    });
    linux.security_context.get_or_insert_default().seccomp =
        target.is_berth().then(v1::SecurityProfile::default);
    config
}
