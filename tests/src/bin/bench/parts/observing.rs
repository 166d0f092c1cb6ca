//! The cost of being observed: stats and metrics of many containers, and lists of a thousand while
//! others are created.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_proto::v1;
use berth_tests::{Cri, Machine, pod};
use futures_util::{StreamExt, TryStreamExt};

use super::Findings;
use crate::{
    fleet::{remove, sleeper},
    options::Options,
    report::{Key, Part, Samples, Unit},
    rig::{Rig, Target, create},
    usage,
};

const RUNNING: usize = 100;
const PODS: usize = 10;
const LOOKS: usize = 50;
/// The kubelet's interval.
const INTERVAL: Duration = Duration::from_secs(10);
const LISTED: usize = 1000;
const CREATES: usize = 20;

/// What a kubelet or a scraper asks for, again and again.
#[derive(Clone, Copy)]
enum Look {
    Containers,
    Pods,
    Metrics,
}

pub(super) async fn measure(rig: &Rig, options: &Options, findings: &mut Findings) -> Result<()> {
    let mut running = Vec::new();
    for target in &rig.targets {
        let sandboxes = fill(&rig.machine, target, &rig.image, RUNNING).await?;
        for containers in sandboxes.iter().map(|sandbox| &sandbox.containers) {
            for id in containers {
                target.cri.start(id).await?;
            }
        }
        running.push((target, sandboxes));
    }
    for (name, look) in [
        ("stats of 100 containers", Look::Containers),
        ("stats of 10 pods with them", Look::Pods),
        ("metrics of 10 pods with them", Look::Metrics),
    ] {
        looks(rig, (name, look), &mut findings.samples).await?;
    }
    periods(rig, options.seconds, &mut findings.samples).await?;
    for (target, sandboxes) in running {
        empty(target, sandboxes).await?;
    }
    for target in &rig.targets {
        let sandboxes = fill(&rig.machine, target, &rig.image, LISTED).await?;
        lists(&rig.machine, target, &rig.image, &sandboxes[0].id, &mut findings.samples).await?;
        empty(target, sandboxes).await?;
    }
    Ok(())
}

/// One request after another, in turn: what each takes, and its CPU time in the daemon.
async fn looks(rig: &Rig, (name, look): (&str, Look), samples: &mut Samples) -> Result<()> {
    let time = Key::new(Part::Observing, name, Unit::Milliseconds);
    let cpu = Key::new(Part::Observing, &format!("{name}, CPU"), Unit::Milliseconds);
    for target in &rig.targets {
        look_at(&target.cri, look).await?;
    }
    let mut used = vec![0.0; rig.targets.len()];
    for _ in 0..LOOKS {
        for (target, used) in rig.targets.iter().zip(&mut used) {
            let before = target.pid().map_or(0.0, usage::precise_cpu_ms);
            let begun = Instant::now();
            look_at(&target.cri, look).await?;
            samples.add_time(&time, target.name, begun.elapsed());
            *used += target.pid().map_or(0.0, usage::precise_cpu_ms) - before;
        }
    }
    for (target, used) in rig.targets.iter().zip(used) {
        samples.add(&cpu, target.name, used / LOOKS as f64);
    }
    Ok(())
}

/// The daemon's CPU while it is asked as the kubelet asks, walks through layers included.
async fn periods(rig: &Rig, seconds: u64, samples: &mut Samples) -> Result<()> {
    let cpu = |target: &Target| target.pid().map_or(0.0, usage::precise_cpu_ms);
    let before: Vec<f64> = rig.targets.iter().map(cpu).collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(INTERVAL).await;
        for target in &rig.targets {
            look_at(&target.cri, Look::Containers).await?;
        }
    }
    let elapsed = begun.elapsed().as_secs_f64() * 1000.0;
    let name = "stats of 100 containers every 10 s, CPU";
    let key = Key::new(Part::Observing, name, Unit::PercentOfACore);
    for (target, before) in rig.targets.iter().zip(before) {
        samples.add(&key, target.name, (cpu(target) - before) / elapsed * 100.0);
    }
    Ok(())
}

async fn look_at(cri: &Cri, look: Look) -> Result<()> {
    let mut runtime = cri.runtime.clone();
    match look {
        Look::Containers => {
            drop(runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await?);
        }
        Look::Pods => {
            drop(runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?);
        }
        Look::Metrics => {
            let request = v1::ListPodSandboxMetricsRequest::default();
            drop(runtime.list_pod_sandbox_metrics(request).await?);
        }
    }
    Ok(())
}

struct Sandbox {
    id: String,
    containers: Vec<String>,
}

/// Pods with `count` containers, with labels and annotations as the kubelet gives them. They are
/// not started.
async fn fill(
    machine: &Machine,
    target: &Target,
    image: &str,
    count: usize,
) -> Result<Vec<Sandbox>> {
    let mut sandboxes = Vec::new();
    for number in 0..PODS {
        let mut config = pod(machine, &format!("seen-{}-{number}", target.name));
        if let Some(linux) = &mut config.linux {
            linux.cgroup_parent = format!("/{}/pod{number}", machine.cgroup_parent);
        }
        let id = target.cri.run_pod(config.clone()).await?;
        let name = |own: usize| labelled(&format!("c{own}"), image);
        let creates = (0..count / PODS).map(|own| create(&target.cri, &id, &config, name(own)));
        let containers =
            futures_util::stream::iter(creates).buffer_unordered(4).try_collect().await?;
        sandboxes.push(Sandbox { id, containers });
    }
    Ok(sandboxes)
}

fn labelled(name: &str, image: &str) -> v1::ContainerConfig {
    let mut config = sleeper(name, image);
    let entry = |key: &str| (format!("io.kubernetes.{key}"), format!("value of {key}"));
    config.labels = ["container.name", "pod.name", "pod.namespace", "pod.uid"].map(entry).into();
    config.annotations = [
        "container.hash",
        "container.restartCount",
        "container.terminationMessagePath",
        "pod.terminationGracePeriod",
    ]
    .map(entry)
    .into();
    config
}

async fn empty(target: &Target, sandboxes: Vec<Sandbox>) -> Result<()> {
    for sandbox in sandboxes {
        remove(target, sandbox.id).await?;
    }
    Ok(())
}

/// Lists with many containers: while others are created, and alone.
async fn lists(
    machine: &Machine,
    target: &Target,
    image: &str,
    sandbox: &str,
    samples: &mut Samples,
) -> Result<()> {
    let config = pod(machine, &format!("seen-{}-0", target.name));
    let (until, ended) = tokio::sync::watch::channel(false);
    let looks = tokio::spawn(look_until(target.cri.clone(), ended));
    let name = |number: usize| labelled(&format!("more-{number}"), image);
    let creates =
        (0..10 * CREATES).map(|number| create(&target.cri, sandbox, &config, name(number)));
    let created: Vec<String> =
        futures_util::stream::iter(creates).buffer_unordered(CREATES).try_collect().await?;
    until.send_replace(true);
    told(target, "list of 1000, while 20 more are created at a time", looks.await??, samples);
    for id in created {
        target.cri.remove(&id).await?;
    }
    let (until, ended) = tokio::sync::watch::channel(false);
    let looks = tokio::spawn(look_until(target.cri.clone(), ended));
    tokio::time::sleep(Duration::from_secs(1)).await;
    until.send_replace(true);
    told(target, "list of 1000 containers", looks.await??, samples);
    Ok(())
}

fn told(target: &Target, name: &str, times: Vec<Duration>, samples: &mut Samples) {
    let key = Key::new(Part::Observing, name, Unit::Milliseconds);
    times.into_iter().for_each(|time| samples.add_time(&key, target.name, time));
}

async fn look_until(
    cri: Cri,
    ended: tokio::sync::watch::Receiver<bool>,
) -> Result<Vec<Duration>, tonic::Status> {
    let mut times = Vec::new();
    let mut runtime = cri.runtime;
    while !*ended.borrow() {
        let begun = Instant::now();
        drop(runtime.list_containers(v1::ListContainersRequest::default()).await?);
        times.push(begun.elapsed());
        drop(runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?);
    }
    Ok(times)
}
