//! Many pods at the same time, started twenty at once and probed like the kubelet does it: nothing
//! fails, nothing takes long, and a restart under that is soon over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_proto::v1::{self, ContainerState, PodSandboxState};
use berth_tests::{
    Capability, Cri, Machine, churn::percentile, container, has_single_processor, pod, ready,
    without_load,
};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

/// How many pods are started and removed at once.
const AT_ONCE: usize = 20;
/// How often each pod is probed: the kubelet's default of `periodSeconds`.
const PERIOD: Duration = Duration::from_secs(10);
/// The longest that a call may take: a quarter of the kubelet's own limit of two minutes.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a killed daemon's successor may take until it lists all pods as ready and all containers
/// as running.
///
/// A release build is to take 0.2 s with 500 pods. Others are compiled with little optimisation and
/// with assertions, share the processors with tests that run at the same time, and are only to stay
/// below what anybody would notice.
const RESTART: Duration = Duration::from_millis(if cfg!(debug_assertions) { 3000 } else { 200 });

/// As many pods as BERTH_LOAD_PODS says. Otherwise 500: that is 1000 processes, 500 network
/// namespaces and some 2 GiB of memory, most of it the kernel's, and half of the ports that a
/// bridge can have. Machines that are known to be smaller have fewer.
fn pods() -> usize {
    let default = if has_single_processor() || !Capability::Memory.is_there() { 40 } else { 500 };
    std::env::var("BERTH_LOAD_PODS").map_or(default, |text| text.parse().expect("a number"))
}

/// How long calls took, by verb.
#[derive(Debug, Default)]
struct Times(Mutex<BTreeMap<&'static str, Vec<Duration>>>);

impl Times {
    async fn of<T>(&self, verb: &'static str, call: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = call.await;
        self.0.lock().unwrap().entry(verb).or_default().push(begun.elapsed());
        result
    }

    /// Prints them all, and returns the longest.
    fn tell(&self) -> Duration {
        let mut longest = Duration::ZERO;
        for (verb, times) in self.0.lock().unwrap().iter_mut() {
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| percentile(times, part));
            eprintln!(
                "{verb:<16} {:>5} calls, p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}",
                times.len()
            );
            longest = longest.max(max);
        }
        longest
    }
}

struct Node {
    machine: Machine,
    cri: Cri,
    image: String,
    times: Times,
    /// Pods and their containers that run.
    running: Mutex<Vec<(String, String)>>,
    /// No daemon serves for a moment: calls may fail.
    restarting: AtomicBool,
    done: AtomicBool,
    next: AtomicUsize,
}

impl Node {
    /// Runs pods until there are so many.
    async fn start(&self, pods: usize) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= pods {
                return;
            }
            let config = pod(&self.machine, &format!("p{number}"));
            let pod = self.times.of("RunPodSandbox", self.cri.run_pod(config)).await.unwrap();
            let config = container("c", &self.image, "exec sleep 100000");
            let create = Box::pin(self.cri.create(&pod, config));
            let id = self.times.of("CreateContainer", create).await.unwrap();
            self.times.of("StartContainer", self.cri.start(&id)).await.unwrap();
            self.running.lock().unwrap().push((pod, id));
        }
    }

    async fn remove(&self) {
        loop {
            let next = self.running.lock().unwrap().pop();
            let Some((pod, id)) = next else { return };
            self.times.of("StopContainer", self.cri.stop(&id, 0)).await.unwrap();
            self.times.of("StopPodSandbox", self.cri.stop_pod(&pod)).await.unwrap();
            self.times.of("RemovePodSandbox", self.cri.remove_pod(&pod)).await.unwrap();
        }
    }

    async fn probe(&self, id: &str) {
        let probed = self.times.of("ExecSync", self.cri.exec(id, &["true"], 30)).await;
        match probed {
            Ok(output) => assert_eq!(output.exit_code, 0),
            Err(status) => assert!(self.restarting.load(Ordering::SeqCst), "probe: {status}"),
        }
    }

    /// Probes every container once in a period, and lists everything each second, like the kubelet.
    async fn probe_all(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let parts = PERIOD.as_secs() as usize;
        for second in 0.. {
            ticks.tick().await;
            if self.done.load(Ordering::Relaxed) {
                return;
            }
            let due: Vec<String> = {
                let running = self.running.lock().unwrap();
                running
                    .iter()
                    .skip(second % parts)
                    .step_by(parts)
                    .map(|(_, id)| id.clone())
                    .collect()
            };
            for id in &due {
                self.probe(id).await;
            }
            let filter = v1::ContainerFilter::default();
            let listed = self.times.of("ListContainers", self.cri.listed_containers(filter)).await;
            assert!(listed.is_ok() || self.restarting.load(Ordering::SeqCst), "{listed:?}");
        }
    }
}

async fn at_once<F: Future<Output = ()> + Send + 'static>(work: impl Fn() -> F) {
    let mut tasks = JoinSet::new();
    (0..AT_ONCE).for_each(|_| drop(tasks.spawn(work())));
    tasks.join_all().await;
}

/// Waits until everything is listed as before, and returns how long that took.
async fn all_adopted(cri: &Cri, pods: usize, begun: Instant) -> Duration {
    loop {
        let mut runtime = cri.runtime.clone();
        let sandboxes = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        if let Ok(sandboxes) = sandboxes {
            let containers = cri.listed_containers(v1::ContainerFilter::default()).await.unwrap();
            let is_ready = |pod: &&v1::PodSandbox| pod.state() == PodSandboxState::SandboxReady;
            let is_running = |one: &&v1::Container| one.state() == ContainerState::ContainerRunning;
            let ready = sandboxes.get_ref().items.iter().filter(is_ready).count();
            let running = containers.iter().filter(is_running).count();
            if (ready, running) == (pods, pods) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < LONGEST, "{ready} ready and {running} running of {pods}");
        }
        // Polled: nobody announces that a socket accepts connections.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_pods_start_are_probed_and_outlive_a_kill_without_an_error() {
    let _alone = without_load().await;
    let pods = pods();
    let (machine, daemon, cri, image) = ready().await;
    let node = Arc::new(Node {
        machine,
        cri,
        image,
        times: Times::default(),
        running: Mutex::default(),
        restarting: AtomicBool::new(false),
        done: AtomicBool::new(false),
        next: AtomicUsize::new(0),
    });
    let clone = || node.clone();
    let node_of_probes = clone();
    let probing = tokio::spawn(async move { node_of_probes.probe_all().await });
    let begun = Instant::now();
    at_once(|| {
        let node = clone();
        async move { node.start(pods).await }
    })
    .await;
    eprintln!("{pods} pods, {AT_ONCE} at once: {:.1?}", begun.elapsed());

    let shims: BTreeSet<_> = node.machine.shims().into_iter().collect();
    node.restarting.store(true, Ordering::SeqCst);
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let begun = Instant::now();
    let (daemon, cri) = node.machine.launch(&[]);
    let restart = all_adopted(&cri, pods, begun).await;
    let log = daemon.log();
    let recovered = log.lines().rfind(|line| line.contains("recovered")).unwrap_or_default();
    eprintln!("restart: all of {pods} pods are listed as they were after {restart:.1?}");
    eprintln!("of which the daemon says: {recovered}");
    // Before the probes go on: the child of a shim has its command line until it executes one.
    assert_eq!(node.machine.shims().into_iter().collect::<BTreeSet<_>>(), shims);
    node.restarting.store(false, Ordering::SeqCst);
    assert!(restart < RESTART, "{restart:?}\n{log}");
    // Each of them can be executed in again.
    let running = node.running.lock().unwrap().clone();
    for (_, id) in &running {
        node.probe(id).await;
    }

    node.done.store(true, Ordering::Relaxed);
    probing.await.unwrap();
    let begun = Instant::now();
    at_once(|| {
        let node = clone();
        async move { node.remove().await }
    })
    .await;
    eprintln!("removed, {AT_ONCE} at once: {:.1?}", begun.elapsed());
    let longest = node.times.tell();
    assert!(longest < LONGEST, "a call took {longest:?}");
    node.machine.assert_clean().await;
}
