//! `hack/bench` after the build: berthd and a containerd on one machine, driven through CRI in turn, medians and their ratio.

mod observing;
mod plugins;
mod streaming;

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Containerd, Cri, DockerRegistry, Image, Layer, Machine, busybox, container, gzip, pod, processes};
use serde_json::json;

const USAGE: &str = "\
Drives berthd and containerd (or any CRI endpoint) through the same verbs in turn and prints medians and the ratio.

usage: hack/bench [--rounds N] [--pulls N] [--peer SOCKET | --alone]

  --rounds N      pod lives to measure, after one to warm up (default 20)
  --pulls N       pulls to measure (default 3)
  --peer SOCKET   compare with the runtime at this unix socket, which must reach 127.0.0.1:5000 of this machine's network
  --alone         no peer

Absolute times say little on a shared machine; the ratio is of one run. Examples:
  hack/bench
  hack/bench --rounds 100 --alone
";

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Options {
    rounds: usize,
    pulls: usize,
    peer: Option<PathBuf>,
    alone: bool,
}

fn options() -> Outcome<Option<Options>> {
    let mut options = Options { rounds: 20, pulls: 3, peer: None, alone: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--pulls" => options.pulls = value()?.parse()?,
            "--peer" => options.peer = Some(value()?.into()),
            "--alone" => options.alone = true,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("no option {other}; see --help").into()),
        }
    }
    Ok(Some(options))
}

/// Milliseconds by verb, in the order of a pod's life.
type Times = BTreeMap<(usize, &'static str), Vec<f64>>;

struct Target {
    name: String,
    cri: Cri,
    times: Times,
    /// Of the daemon, where it is ours to look at.
    pid: Option<u32>,
    /// KiB of the daemon above what it had before a pull.
    peaks: Vec<f64>,
}

#[allow(clippy::print_stdout, reason = "a program for people")]
fn say(line: &str) {
    println!("{line}");
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let Some(options) = options()? else {
        say(USAGE.trim_end());
        return Ok(());
    };
    let machine = Machine::new();
    let registry = DockerRegistry::start(&machine).await;
    let small = registry.push(&machine, "busybox", "1", &Image::busybox());
    registry.push(&machine, "pause", "1", &Image::simple(busybox(), &["/bin/sleep", "1000000"]));
    let tree = tree()?;
    let large = registry.push(&machine, "tree", "1", &tree.image);
    // A new one for every pull: where as many files were just deleted, ext4 looks long for an inode (`recently_deleted`).
    let many: Vec<String> =
        (0..options.pulls).map(|pull| registry.push(&machine, "many", &pull.to_string(), &many(pull))).collect();
    let compressed: usize = tree.image.blobs.iter().map(Vec::len).sum();
    let (bytes, layers) = (tree.tars.iter().map(Vec::len).sum::<usize>(), tree.tars.len());
    say(&format!(
        "PullImage: {} MB of this machine's /usr in {layers} layers, the first half of it, {} MB as gzip",
        bytes >> 20,
        compressed >> 20
    ));

    let daemon = machine.start().await;
    let own = Target {
        name: "berth".into(),
        cri: daemon.cri(),
        times: Times::new(),
        pid: Some(u32::try_from(daemon.pid())?),
        peaks: Vec::new(),
    };
    let mut targets = vec![own];
    let mut _containerd = None;
    if let Some(socket) = &options.peer {
        targets.push(Target {
            name: "peer".into(),
            cri: Cri::connect(socket),
            times: Times::new(),
            pid: None,
            peaks: Vec::new(),
        });
    } else if !options.alone {
        let containerd = Containerd::start(&machine, &network(&machine), "127.0.0.1:5000/pause:1").await;
        targets.push(Target {
            name: "containerd".into(),
            cri: containerd.cri(),
            times: Times::new(),
            pid: Some(containerd.pid()),
            peaks: Vec::new(),
        });
        _containerd = Some(containerd);
    }
    for target in &targets {
        target.cri.pull(&small).await?;
    }
    for round in 0..=options.rounds {
        for target in &mut targets {
            Box::pin(life(target, &machine, &small, round)).await?;
        }
    }
    // The small ones first: what the large one leaves for the disk to do would count for whoever comes next.
    for image in &many {
        for target in &mut targets {
            let pulled = pull(target, image).await?;
            record(target, 102, vec![("Pull, 40 layers", pulled)]);
        }
    }
    for _ in 0..options.pulls {
        for target in &mut targets {
            let pulled = pull(target, &large).await?;
            let begun = Instant::now();
            target.cri.remove_image(&large).await?;
            record(target, 100, vec![("PullImage", pulled), ("RemoveImage", begun.elapsed())]);
        }
    }
    let plugins = if options.peer.is_none() { plugins::compare(options.rounds, options.alone)? } else { Vec::new() };
    let streams = streaming::compare(&machine, &targets, &small).await?;
    let limits = limits(&machine, &tree)?;
    let memory = memory(&machine, &mut targets, &small).await?;
    // Last: what a thousand containers leave in a daemon's heap is not what ten pods cost.
    let observed = observing::compare(&machine, &targets, &small).await?;
    table(&targets);
    plugins.iter().chain(&streams).chain(&limits).chain(&memory).chain(&observed).for_each(|line| say(line));
    Ok(())
}

/// One pod with one container, from run to removal; round 0 warms up.
async fn life(target: &mut Target, machine: &Machine, image: &str, round: usize) -> Outcome<()> {
    let cri = target.cri.clone();
    let mut measured = Vec::new();
    let mut clock = Instant::now();
    let mut lap = |name| {
        measured.push((name, clock.elapsed()));
        clock = Instant::now();
    };
    cri.pull(image).await?;
    lap("Pull what is there");
    let config = pod(machine, &format!("bench-{}-{round}", target.name));
    let sandbox = cri.run_pod(config.clone()).await?;
    lap("RunPodSandbox");
    let id = create(&cri, &sandbox, &config, container("c", image, "exec sleep 1000")).await?;
    lap("CreateContainer");
    cri.start(&id).await?;
    lap("StartContainer");
    cri.exec(&id, &["true"], 10).await?;
    lap("ExecSync");
    cri.stop(&id, 0).await?;
    lap("StopContainer");
    cri.remove(&id).await?;
    lap("RemoveContainer");
    let full = full(machine, image, target.name == "berth")?;
    lap("");
    let id = create(&cri, &sandbox, &config, full).await?;
    lap("Create, with all");
    cri.start(&id).await?;
    lap("Start, with all");
    cri.stop(&id, 0).await?;
    cri.remove(&id).await?;
    lap("");
    cri.stop_pod(&sandbox).await?;
    lap("StopPodSandbox");
    cri.remove_pod(&sandbox).await?;
    lap("RemovePodSandbox");
    if round > 0 {
        measured.retain(|(name, _)| !name.is_empty());
        record(target, 0, measured);
    }
    Ok(())
}

/// What a pod of a real cluster has: the default seccomp profile, 20 mounts, 30 variables, limits. A runc that is built as a Go module
/// has no seccomp: berth does that on top.
fn full(machine: &Machine, image: &str, seccomp: bool) -> Outcome<v1::ContainerConfig> {
    let mut config = container("full", image, "exec sleep 1000");
    for number in 0..20 {
        let host = machine.path(&format!("volumes/{number}"));
        fs::create_dir_all(&host)?;
        let (host_path, container_path) = (host.display().to_string(), format!("/volumes/{number}"));
        config.mounts.push(v1::Mount { host_path, container_path, readonly: number % 2 == 0, ..v1::Mount::default() });
    }
    let variable = |number| v1::KeyValue { key: format!("VARIABLE_{number}"), value: b"some value".to_vec() };
    config.envs = (0..30).map(variable).collect();
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 200_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 256 << 20,
        ..Default::default()
    });
    linux.security_context.get_or_insert_default().seccomp = seccomp.then(v1::SecurityProfile::default);
    Ok(config)
}

/// With the sandbox's configuration, as the kubelet sends it and containerd wants it.
async fn create(cri: &Cri, sandbox: &str, pod: &v1::PodSandboxConfig, config: v1::ContainerConfig) -> Outcome<String> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    Ok(Box::pin(cri.runtime.clone().create_container(request)).await?.into_inner().container_id)
}

/// How long it takes; notes the memory that it takes.
async fn pull(target: &mut Target, image: &str) -> Outcome<Duration> {
    let before = target.pid.map(|pid| {
        // proc_pid_clear_refs(5): the peak is from now on.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        smaps(pid, "Rss:")
    });
    let begun = Instant::now();
    target.cri.pull(image).await?;
    let pulled = begun.elapsed();
    if let (Some(pid), Some(before)) = (target.pid, before) {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| rest.split_whitespace().next());
        target.peaks.push(peak.unwrap_or_default().parse::<f64>()? - before as f64);
    }
    Ok(pulled)
}

/// What a pull cannot be faster than: its parts, each alone.
fn limits(machine: &Machine, tree: &Tree) -> Outcome<Vec<String>> {
    let mut lines = vec!["\nparts of PullImage, each alone, ms".to_owned()];
    let mut inflate = Vec::new();
    for blob in &tree.image.blobs[..tree.tars.len()] {
        let begun = Instant::now();
        std::io::copy(&mut flate2::bufread::MultiGzDecoder::new(blob.as_slice()), &mut std::io::sink())?;
        inflate.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let longest = inflate.iter().copied().fold(0.0, f64::max);
    lines.push(format!("  inflate {:.0}, of the largest layer {longest:.0}", inflate.iter().sum::<f64>()));
    let target = machine.path("tar");
    fs::create_dir_all(&target)?;
    let begun = Instant::now();
    for tar in &tree.tars {
        let mut child = std::process::Command::new("tar").arg("-xC").arg(&target).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().ok_or("piped")?.write_all(tar)?;
        child.wait()?;
    }
    lines.push(format!("  tar -x of all layers, one by one, {:.0}", begun.elapsed().as_secs_f64() * 1000.0));
    fs::remove_dir_all(&target)?;
    Ok(lines)
}

fn record(target: &mut Target, first: usize, measured: Vec<(&'static str, Duration)>) {
    for (index, (name, time)) in measured.into_iter().enumerate() {
        target.times.entry((first + index, name)).or_default().push(time.as_secs_f64() * 1000.0);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(targets: &[Target]) {
    let header: String = targets.iter().map(|target| format!("{:>14}", target.name)).collect();
    say(&format!("\n{:<18}{header}{:>10}", "median, ms", if targets.len() > 1 { "ratio" } else { "" }));
    for (verb, own) in &targets[0].times {
        let own = median(own);
        let others: Vec<f64> = targets[1..].iter().map(|target| median(&target.times[verb])).collect();
        let cells: String = [own].iter().chain(&others).map(|time| format!("{time:>14.2}")).collect();
        let ratio: String = others.iter().map(|other| format!("{:>10}", format!("1/{:.1}", other / own))).collect();
        say(&format!("{:<18}{cells}{ratio}", verb.1));
    }
}

/// What ten running pods cost: each daemon, and its shims.
async fn memory(machine: &Machine, targets: &mut [Target], image: &str) -> Outcome<Vec<String>> {
    const PODS: usize = 10;
    let mut lines = vec![format!("\nmemory with {PODS} pods of one container, KiB")];
    for target in targets {
        let mut sandboxes = Vec::new();
        for index in 0..PODS {
            let config = pod(machine, &format!("memory-{}-{index}", target.name));
            let sandbox = target.cri.run_pod(config.clone()).await?;
            let id = create(&target.cri, &sandbox, &config, container("c", image, "exec sleep 1000")).await?;
            target.cri.start(&id).await?;
            sandboxes.push(sandbox);
        }
        let marker = machine.dir.path().display().to_string();
        let daemon = target.pid.map_or(0, |pid| smaps(pid, "Rss:"));
        let shims = processes(&marker, if target.name == "berth" { "berth-shim" } else { "containerd-shim" });
        let peak = target.peaks.iter().copied().fold(0.0, f64::max);
        let private: f64 = median(&shims.iter().map(|pid| private(*pid)).collect::<Vec<_>>());
        let rss = median(&shims.iter().map(|pid| smaps(*pid, "Rss:") as f64).collect::<Vec<_>>());
        lines.push(format!(
            "  {:<12} daemon RSS {daemon}, {peak:.0} more while pulling, shim RSS {rss:.0}, private {private:.0} (median of {})",
            target.name,
            shims.len()
        ));
        for sandbox in sandboxes {
            target.cri.stop_pod(&sandbox).await?;
            target.cri.remove_pod(&sandbox).await?;
        }
    }
    Ok(lines)
}

fn smaps(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let values = text.lines().filter(|line| line.starts_with(field));
    values.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn private(pid: u32) -> f64 {
    (smaps(pid, "Private_Clean:") + smaps(pid, "Private_Dirty:")) as f64
}

/// Upstream's bridge, as the built-in network is.
fn network(machine: &Machine) -> serde_json::Value {
    let subnet = json!([[{ "subnet": "10.89.0.0/16" }]]);
    let ipam = json!({ "type": "host-local", "ranges": subnet, "dataDir": machine.path("host-local") });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "ipam": ipam });
    json!({ "cniVersion": "1.0.0", "name": "peer", "plugins": [bridge] })
}

struct Tree {
    image: Image,
    tars: Vec<Vec<u8>>,
}

/// Files of this machine: a large layer and four small ones.
fn tree() -> Outcome<Tree> {
    let mut tars = Vec::new();
    let mut files = Vec::new();
    collect(Path::new("/usr/lib"), &mut files);
    collect(Path::new("/usr/share"), &mut files);
    let mut files = files.into_iter();
    for limit in [200 << 20, 50 << 20, 50 << 20, 50 << 20, 50 << 20] {
        let (mut layer, mut size) = (Layer::new(), 0);
        while size < limit {
            let Some(path) = files.next() else { break };
            let name = path.strip_prefix("/")?.display().to_string();
            let Ok(content) = fs::read(&path) else { continue };
            // Longer names need another kind of header, and there are enough without.
            if name.len() < 100 {
                size += content.len();
                layer = layer.file(&name, &content);
            }
        }
        tars.push(layer.bytes());
    }
    Ok(Tree { image: packed(&tars), tars })
}

/// Forty layers of a few files, others for every `number`.
fn many(number: usize) -> Image {
    let content = format!("{number:020}").repeat(1000);
    let layer = |layer: usize| {
        let file = |tar: Layer, file| tar.file(&format!("layer{layer}/file{file}"), content.as_bytes());
        (0..10).fold(Layer::new(), file)
    };
    packed(&(0..40).map(|index| layer(index).bytes()).collect::<Vec<_>>())
}

fn packed(tars: &[Vec<u8>]) -> Image {
    let layers: Vec<_> = tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect();
    Image::new(&layers, &json!({ "Cmd": ["true"] }))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}
