//! Records of the whole node that are damaged: the daemon starts, serves all there is, and replaces
//! or names what is lost.

use std::{collections::BTreeSet, fs, time::Instant};

use berth_tests::{
    Cri, Daemon, Damage, FakeRegistry, Image, Machine, container, digest, eventually, pod,
};

use crate::SOON;

/// Nothing follows from the damage of one of these. `PULL` stands for the image that is pulled
/// next.
const WITHOUT_LOSS: [&str; 11] = [
    "root/version",
    "root/reserve",
    "root/pod-cidr.json",
    "root/images/oci-layout",
    "root/images/index.json.synced",
    "root/images/index.json.syncing",
    "root/images/index.json.damaged",
    "root/images/pulls/PULL.json",
    "root/images/partial/PULL",
    "state/ipam/berth/boot",
    "state/ipam/berth/last_reserved_ip.0",
];

/// A node with a pod, a container and an image.
struct Node {
    machine: Machine,
    cri: Cri,
    registry: FakeRegistry,
    image: String,
    pod: String,
    container: String,
}

impl Node {
    async fn start() -> (Self, Daemon) {
        let machine = Machine::new();
        let daemon = machine.start().await;
        let cri = daemon.cri();
        let registry = FakeRegistry::start(&machine, Image::busybox(), |_| None);
        let image = format!("{}/image:1", registry.host);
        cri.pull(&image).await.unwrap();
        let pod = cri.run_pod(pod(&machine, "well")).await.unwrap();
        let container = cri.run(&pod, container("c", &image, "exec sleep 1000")).await.unwrap();
        (Self { machine, cri, registry, image, pod, container }, daemon)
    }

    /// Ends the daemon, damages a record, and starts it again. Also returns what it has said.
    async fn restart(&self, daemon: Daemon, damage: Damage, paths: &[&str]) -> (Daemon, String) {
        let said = daemon.log().len();
        daemon.kill();
        for path in paths {
            damage.put(&self.machine.path(path));
        }
        let begun = Instant::now();
        let daemon = self.machine.start().await;
        assert!(begun.elapsed() < SOON, "{damage:?} {paths:?}: {:?}", begun.elapsed());
        let log = daemon.log()[said..].to_owned();
        (daemon, log)
    }

    /// Asserts that everything works: what was there, and new pods and pulls.
    async fn assert_serves(&self, what: &str) {
        let cri = &self.cri;
        assert_eq!(cri.sh(&self.container, "echo served").await, "served\n", "{what}");
        cri.pull(&self.image).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let ip = async |pod: &str| cri.pod_status(pod).await.unwrap().network.unwrap().ip;
        let new = cri.run_pod(pod(&self.machine, "new")).await;
        let new = new.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(ip(&new).await, ip(&self.pod).await, "{what}");
        cri.run(&new, container("c", &self.image, "exec sleep 1000")).await.unwrap();
        cri.remove_pod(&new).await.unwrap();
    }

    async fn images(&self) -> BTreeSet<String> {
        self.cri.images().await.into_iter().map(|image| image.id).collect()
    }

    /// Waits until a power loss would cost no image.
    async fn synced(&self) {
        let read = |name: &str| fs::read(self.machine.path(&format!("root/images/{name}"))).ok();
        eventually("the synced index", async || {
            read("index.json").is_some() && read("index.json") == read("index.json.synced")
        })
        .await;
    }

    /// The path of a blob that the image has, by the key of its descriptor.
    fn blob(&self, of: &str) -> String {
        let read = |path: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(self.machine.path(path)).unwrap()).unwrap()
        };
        let path = |digest: &serde_json::Value| {
            let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            format!("root/images/blobs/sha256/{hex}")
        };
        let manifest = path(&read("root/images/index.json")["manifests"][0]["digest"]);
        match of {
            "manifest" => manifest,
            key => path(&read(&manifest)[key]["digest"]),
        }
    }
}

#[tokio::test]
async fn a_damaged_record_of_the_node_keeps_nothing_from_being_served() {
    let (node, mut daemon) = Node::start().await;
    let images = node.images().await;
    for damage in Damage::ALL {
        node.synced().await;
        let pulled = digest(format!("{}/image:1", node.registry.host).as_bytes());
        let pulled = pulled.strip_prefix("sha256:").unwrap();
        let paths = WITHOUT_LOSS.map(|path| path.replace("PULL", pulled));
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let log;
        (daemon, log) = node.restart(daemon, damage, &paths).await;
        let what = format!("{damage:?}");
        assert_eq!(node.images().await, images, "{what}");
        for damaged in ["root/version is damaged", "pod-cidr.json is damaged"] {
            assert!(log.contains(damaged), "{what}: no {damaged:?} in\n{log}");
        }
        node.assert_serves(&what).await;

        node.synced().await;
        let log;
        (daemon, log) = node.restart(daemon, damage, &["root/images/index.json"]).await;
        assert!(log.contains("image index is damaged"), "{what}: {log}");
        assert_eq!(node.images().await, images, "{what}");
        node.assert_serves(&what).await;

        for blob in ["manifest", "config"] {
            let what = format!("{blob} {damage:?}");
            let log;
            (daemon, log) = node.restart(daemon, damage, &[&node.blob(blob)]).await;
            assert!(log.contains(&format!("`crictl pull {}`", node.image)), "{what}: {log}");
            assert!(node.images().await.is_empty(), "{what}");
            node.assert_serves(&what).await;
            assert_eq!(node.images().await, images, "{what}");
        }
    }
    node.cri.remove_pod(&node.pod).await.unwrap();
    node.machine.assert_clean().await;
    drop(daemon);
}

/// Whether another daemon uses a root is told by the lock of a file. Without that file nothing is
/// started.
#[tokio::test]
async fn a_root_whose_lock_is_no_file_is_refused_with_what_to_do() {
    let machine = Machine::new();
    machine.start().await.kill();
    for damage in Damage::ALL {
        let lock = machine.path("root/lock");
        damage.put(&lock);
        let before = fs::read_to_string(machine.path("berthd.log")).unwrap().len();
        let (daemon, cri) = machine.launch(&[]);
        if damage.is_in_place() {
            cri.serving().await.unwrap();
            daemon.kill();
            continue;
        }
        assert!(!daemon.wait().success(), "{damage:?}");
        let log = fs::read_to_string(machine.path("berthd.log")).unwrap();
        assert!(log[before..].contains("stop any berthd that runs, and remove it"), "{log}");
        machine.output("rm", &["-r", &lock.display().to_string()]);
        machine.start().await.kill();
    }
}
