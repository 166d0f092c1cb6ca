//! What it costs to be looked at: stats and metrics of many containers, and lists of a thousand while others are created.

use std::time::{Duration, Instant};

use berth_proto::v1;
use berth_tests::{Cri, Machine, container, pod};
use futures_util::{StreamExt, TryStreamExt};
use nix::{time::clock_getcpuclockid, unistd::Pid};

use crate::{Outcome, Target, create, median};

const RUNNING: usize = 100;
const PODS: usize = 10;
const LOOKS: usize = 50;
/// As the kubelet looks.
const INTERVAL: Duration = Duration::from_secs(10);
const PERIODS: u32 = 6;
const LISTED: usize = 1000;
const CREATES: usize = 20;

/// Lines for people.
pub(crate) async fn compare(machine: &Machine, targets: &[Target], image: &str) -> Outcome<Vec<String>> {
    let mut lines = vec![format!("\n{RUNNING} running containers in {PODS} pods, looked at {LOOKS} times")];
    for target in targets {
        let sandboxes = fill(machine, target, image, RUNNING, true).await?;
        for (name, look) in [("containers", 0), ("pods", 1), ("metrics", 2)] {
            let mut times = Vec::new();
            look_at(&target.cri, look).await?;
            let before = target.pid.map_or(0.0, cpu_ms);
            for _ in 0..LOOKS {
                let begun = Instant::now();
                look_at(&target.cri, look).await?;
                times.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            let each = (target.pid.map_or(0.0, cpu_ms) - before) / LOOKS as f64;
            lines.push(format!("  {:<12} {name:<10} {:>6.2} ms, CPU {each:.2} ms", target.name, median(&times)));
        }
        // A minute, with the walks through layers that are due in it.
        let before = target.pid.map_or(0.0, cpu_ms);
        for _ in 0..PERIODS {
            tokio::time::sleep(INTERVAL).await;
            look_at(&target.cri, 0).await?;
        }
        let each = (target.pid.map_or(0.0, cpu_ms) - before) / f64::from(PERIODS);
        let (seconds, share) = (INTERVAL.as_secs(), each / INTERVAL.as_millis() as f64 * 100.0);
        lines.push(format!("  {:<12} containers every {seconds} s: {share:.3} % of a core, all in all", target.name));
        empty(&target.cri, sandboxes).await?;
    }
    lines.push(format!("\nlists with {LISTED} containers while {CREATES} more are created at a time, median"));
    for target in targets {
        let sandboxes = fill(machine, target, image, LISTED, false).await?;
        lines.push(format!("  {:<12} {}", target.name, lists(machine, target, image, &sandboxes[0]).await?));
        empty(&target.cri, sandboxes).await?;
    }
    Ok(lines)
}

async fn look_at(cri: &Cri, look: usize) -> Outcome<()> {
    let mut runtime = cri.runtime.clone();
    match look {
        0 => drop(runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await?),
        1 => drop(runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?),
        _ => drop(runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest::default()).await?),
    }
    Ok(())
}

/// Pods with `count` containers, with labels and annotations as the kubelet gives them.
async fn fill(machine: &Machine, target: &Target, image: &str, count: usize, start: bool) -> Outcome<Vec<String>> {
    let mut sandboxes = Vec::new();
    for number in 0..PODS {
        let mut config = pod(machine, &format!("seen-{}-{number}", target.name));
        if let Some(linux) = &mut config.linux {
            linux.cgroup_parent = format!("/{}/pod{number}", machine.cgroup_parent);
        }
        let sandbox = target.cri.run_pod(config.clone()).await?;
        for own in 0..count / PODS {
            let id = create(&target.cri, &sandbox, &config, labelled(&format!("c{own}"), image)).await?;
            if start {
                target.cri.start(&id).await?;
            }
        }
        sandboxes.push(sandbox);
    }
    Ok(sandboxes)
}

fn labelled(name: &str, image: &str) -> v1::ContainerConfig {
    let mut config = container(name, image, "exec sleep 1000");
    let entry = |key: &str| (format!("io.kubernetes.{key}"), format!("value of {key}"));
    config.labels = ["container.name", "pod.name", "pod.namespace", "pod.uid"].map(entry).into();
    config.annotations =
        ["container.hash", "container.restartCount", "container.terminationMessagePath", "pod.terminationGracePeriod"]
            .map(entry)
            .into();
    config
}

async fn empty(cri: &Cri, sandboxes: Vec<String>) -> Outcome<()> {
    for sandbox in sandboxes {
        cri.stop_pod(&sandbox).await?;
        cri.remove_pod(&sandbox).await?;
    }
    Ok(())
}

async fn lists(machine: &Machine, target: &Target, image: &str, sandbox: &str) -> Outcome<String> {
    let config = pod(machine, &format!("seen-{}-0", target.name));
    let (until, ended) = tokio::sync::watch::channel(false);
    let looks = tokio::spawn(look_until(target.cri.clone(), ended));
    let name = |number: usize| labelled(&format!("more-{number}"), image);
    let creates = (0..10 * CREATES).map(|number| create(&target.cri, sandbox, &config, name(number)));
    let created: Vec<String> = futures_util::stream::iter(creates).buffer_unordered(CREATES).try_collect().await?;
    until.send_replace(true);
    let busy = told(&looks.await??);
    for id in created {
        target.cri.remove(&id).await?;
    }
    let (until, ended) = tokio::sync::watch::channel(false);
    let looks = tokio::spawn(look_until(target.cri.clone(), ended));
    tokio::time::sleep(Duration::from_secs(1)).await;
    until.send_replace(true);
    Ok(format!("{busy}; alone {}", told(&looks.await??)))
}

/// Milliseconds of the lists of containers and of pods.
type Lists = (Vec<f64>, Vec<f64>);

async fn look_until(cri: Cri, ended: tokio::sync::watch::Receiver<bool>) -> Result<Lists, tonic::Status> {
    let (mut containers, mut pods, mut runtime) = (Vec::new(), Vec::new(), cri.runtime);
    while !*ended.borrow() {
        let begun = Instant::now();
        drop(runtime.list_containers(v1::ListContainersRequest::default()).await?);
        containers.push(begun.elapsed().as_secs_f64() * 1000.0);
        let begun = Instant::now();
        drop(runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?);
        pods.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok((containers, pods))
}

fn told((containers, pods): &Lists) -> String {
    let looks = containers.len();
    format!("ListContainers {:.2} ms, ListPodSandbox {:.2} ms ({looks} looks)", median(containers), median(pods))
}

/// Of all threads that `pid` has and had (clock_getcpuclockid(3)).
fn cpu_ms(pid: u32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).and_then(|clock| clock.now());
    clock.map_or(f64::NAN, |time| Duration::from(time).as_secs_f64() * 1000.0)
}
