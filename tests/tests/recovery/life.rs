//! What a node does before it loses power, and what it has told its client by when.

use std::{
    fs::{self, File},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use berth_tests::{
    Cri, Disk, FakeRegistry, Image, Layer, Machine, Random, bind, busybox, container, digest,
    eventually, gzip, images_are_synced, pod,
};
use serde_json::json;

/// An image and what its files are.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: &'static str,
    image: Image,
    /// Paths in a container, and the digests of what they hold.
    pub(crate) files: Vec<(&'static str, String)>,
    /// The moments at which it is known to survive.
    pub(crate) kept: Range<usize>,
}

impl Served {
    /// An image with an upper layer whose tar leaves out a directory that the lower one has. Its
    /// files have content of their own for each `seed`.
    fn new(name: &'static str, seed: u64) -> Self {
        let [large, small] = [800_000, 5000].map(|length| noise(seed + length, length));
        let lower = busybox().directory("data", 0o750).file("data/large", &large).bytes();
        let upper = Layer::new().file("data/small", &small).bytes();
        let layers = [lower, upper].map(|tar| (tar.clone(), gzip(&tar)));
        Self {
            name,
            image: Image::new(&layers, &json!({ "Cmd": ["true"] })),
            files: vec![("/data/large", digest(&large)), ("/data/small", digest(&small))],
            kept: 0..0,
        }
    }

    /// Serves it by a registry in the machine, which has to be told of it after each boot.
    pub(crate) fn serve(&self, machine: &Machine) {
        let registry = FakeRegistry::start(machine, self.image.clone(), |_| None);
        let host = self.name.split('/').next().unwrap();
        let directory = machine.path("certs.d").join(host);
        fs::create_dir_all(&directory).unwrap();
        let hosts = format!("server = \"http://{}\"\n", registry.host);
        fs::write(directory.join("hosts.toml"), hosts).unwrap();
    }
}

fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| random.number() as u8).collect()
}

/// How a container ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) code: i32,
    /// The moments at which the client has been told how it ended, and has not removed it.
    pub(crate) told: Range<usize>,
}

/// A node's life until its power is lost.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) images: [Served; 2],
    pub(crate) ended: Vec<Ended>,
    /// What had just been done, and when.
    pub(crate) done: Vec<(&'static str, usize)>,
}

/// The node that leads a life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) disk: &'a Disk,
    pub(crate) cri: &'a Cri,
}

/// The pod of the first image, and containers in it.
struct First {
    pod: String,
    ends: String,
    stopped: String,
    late: String,
}

const ONE: &str = "one.test/image:1";
const TWO: &str = "two.test/image:1";

impl Life {
    /// Leads a life. Whoever loses power afterwards ends its daemon.
    pub(crate) async fn live(node: Node<'_>) -> Self {
        let images = [Served::new(ONE, 1), Served::new(TWO, 2)];
        images.iter().for_each(|image| image.serve(node.machine));
        let mut life = Self { images, ended: Vec::new(), done: Vec::new() };
        life.pull_one(node).await;
        let first = life.end_containers(node).await;
        let short = life.pull_two(node, &first).await;
        life.remove(node, first, &short).await;
        life
    }

    async fn pull_one(&mut self, node: Node<'_>) {
        node.cri.pull(ONE).await.unwrap();
        self.note("one pulled", node.disk);
        eventually("the sync of an image", async || images_are_synced(node.machine)).await;
        self.images[0].kept = node.disk.moment()..usize::MAX;
        self.note("one synced", node.disk);
    }

    /// Containers that end, of which the client is told.
    async fn end_containers(&mut self, node: Node<'_>) -> First {
        let Node { machine, disk, cri } = node;
        fs::create_dir_all(machine.path("volume")).unwrap();
        let script = "while ! test -e /v/end; do sleep 0.02; done; exit 7";
        let mut waits = container("ends", ONE, script);
        waits.mounts = vec![bind(&machine.path("volume"), "/v")];

        let pod = cri.run_pod(pod(machine, "first")).await.unwrap();
        self.note("a pod run", disk);
        let ends = cri.create(&pod, waits).await.unwrap();
        self.note("a container created", disk);
        cri.start(&ends).await.unwrap();
        self.note("a container started", disk);
        let late = cri.create(&pod, container("late", ONE, "exec sleep 1000")).await.unwrap();
        fs::write(machine.path("volume/end"), "").unwrap();
        assert_eq!(cri.exited(&ends).await.exit_code, 7);
        self.end("a container ended", &ends, 7, disk);
        let sleeps = container("stopped", ONE, "exec sleep 1000");
        let stopped = cri.run(&pod, sleeps).await.unwrap();
        cri.stop(&stopped, 0).await.unwrap();
        assert_eq!(cri.status(&stopped).await.unwrap().exit_code, 137);
        self.end("a container stopped", &stopped, 137, disk);
        First { pod, ends, stopped, late }
    }

    /// Another image, with a container that ends before the image may be on the disk. Returns that.
    async fn pull_two(&mut self, node: Node<'_>, first: &First) -> String {
        let Node { machine, disk, cri } = node;
        cri.pull(TWO).await.unwrap();
        self.note("two pulled", disk);
        let short = cri.run(&first.pod, container("short", TWO, "exit 3")).await.unwrap();
        assert_eq!(cri.exited(&short).await.exit_code, 3);
        self.end("a container of two ended", &short, 3, disk);
        eventually("the sync of both images", async || images_are_synced(machine)).await;
        self.images[1].kept = disk.moment()..usize::MAX;
        self.note("two synced", disk);
        cri.start(&first.late).await.unwrap();
        self.note("another container started", disk);
        short
    }

    async fn remove(&mut self, node: Node<'_>, first: First, short: &str) {
        let Node { machine, disk, cri } = node;
        let second = cri.run_pod(pod(machine, "second")).await.unwrap();
        let runs = cri.run(&second, container("runs", TWO, "exec sleep 1000")).await.unwrap();
        self.note("a second pod runs", disk);
        // What removals end, as nobody is told.
        for id in [first.late, runs] {
            self.ended.push(Ended { id, code: 137, told: 0..0 });
        }
        self.forget(&[&first.ends], disk);
        cri.remove(&first.ends).await.unwrap();
        self.note("a container removed", disk);
        cri.stop_pod(&first.pod).await.unwrap();
        self.note("a pod stopped", disk);
        self.forget(&[&first.stopped, short], disk);
        cri.remove_pod(&first.pod).await.unwrap();
        self.note("a pod removed", disk);
        cri.remove_pod(&second).await.unwrap();
        self.images[1].kept.end = disk.moment();
        cri.remove_image(TWO).await.unwrap();
        self.note("an image removed", disk);
        cri.pull(TWO).await.unwrap();
        self.note("an image pulled again", disk);
    }

    fn note(&mut self, what: &'static str, disk: &Disk) {
        self.done.push((what, disk.moment()));
    }

    fn end(&mut self, what: &'static str, id: &str, code: i32, disk: &Disk) {
        let told = disk.moment()..usize::MAX;
        self.ended.push(Ended { id: id.to_owned(), code, told });
        self.note(what, disk);
    }

    /// These are about to be removed, and a power loss may take them from here on.
    fn forget(&mut self, ids: &[&str], disk: &Disk) {
        for ended in self.ended.iter_mut().filter(|ended| ids.contains(&ended.id.as_str())) {
            ended.told.end = disk.moment();
        }
    }

    /// What was done last before `moment`.
    pub(crate) fn last_done(&self, moment: usize) -> &'static str {
        let before = self.done.iter().rev().find(|(_, at)| *at <= moment);
        before.map_or("the daemon started", |(what, _)| what)
    }
}

/// What other programs do to the disk meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Neighbour {
    /// Nothing: only what berthd syncs itself is known to be on the disk.
    Absent,
    /// fsync(2) of a file of its own. That commits the journal, with everybody's names in it, and
    /// writes nobody else's data: files are there, and empty.
    Files,
    /// syncfs(2): everything at this moment is on the disk.
    All,
}

/// A neighbour at work, until it is dropped.
#[derive(Debug)]
pub(crate) struct AtWork {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    pub(crate) fn work(self, machine: &Machine, seed: u64) -> AtWork {
        let ends = Arc::new(AtomicBool::new(false));
        let path = machine.inside_path("root/neighbour");
        let told = ends.clone();
        let thread = thread::spawn(move || {
            let mut random = Random::new(seed);
            while !told.load(Ordering::Relaxed) {
                // Not an event that is waited for, but what makes the moments differ.
                thread::park_timeout(Duration::from_millis(random.below(30)));
                match self {
                    Self::Absent => return,
                    Self::Files => fs::write(&path, [0; 100])
                        .and_then(|()| File::open(&path)?.sync_all())
                        .unwrap(),
                    Self::All => {
                        nix::unistd::syncfs(File::open(path.parent().unwrap()).unwrap()).unwrap();
                    }
                }
            }
        });
        AtWork { ends, thread: Some(thread) }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the neighbour failed");
    }
}
