//! The node loses power. Its disk then has what was flushed, and any part of what was written
//! since. After the next boot everything that is listed works, what the client was told is true,
//! what is lost can be pulled again, and all of it can be removed.
//!
//! The moments are those after each verb, and others by chance; `BERTH_POWER_SEED` repeats a run,
//! and `BERTH_POWER_MOMENTS` says how many there are by chance.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::v1::{ContainerFilter, ContainerState, PodSandboxFilter, PodSandboxState};
use berth_tests::{
    Capability, Cri, Disk, Format, Loss, Machine, Random, container, eventually, pod, skip_without,
};
use tonic::Code;

use crate::life::{Life, Neighbour, Node};

#[tokio::test]
async fn what_was_told_survives_a_power_loss_on_ext4() {
    survives(Format::Ext4, Neighbour::Absent).await;
}

#[tokio::test]
async fn files_without_their_content_after_a_power_loss_are_nobodys_container_or_image() {
    survives(Format::Ext4, Neighbour::Files).await;
}

#[tokio::test]
async fn a_half_done_pull_or_removal_that_a_power_loss_shows_is_finished_or_undone() {
    survives(Format::Ext4, Neighbour::All).await;
}

#[tokio::test]
async fn what_was_told_survives_a_power_loss_on_xfs() {
    survives(Format::Xfs, Neighbour::Files).await;
}

#[tokio::test]
async fn what_was_told_survives_a_power_loss_on_btrfs() {
    survives(Format::Btrfs, Neighbour::Files).await;
}

async fn survives(format: Format, neighbour: Neighbour) {
    let needed = match format {
        Format::Ext4 => None,
        Format::Xfs => Some(Capability::Xfs),
        Format::Btrfs => Some(Capability::Btrfs),
    };
    let mut needed = [Capability::LoopDevices, Capability::Fuse].into_iter().chain(needed);
    if needed.any(skip_without) {
        return;
    }
    let seed = number("BERTH_POWER_SEED").unwrap_or_else(|| std::process::id().into());
    eprintln!("BERTH_POWER_SEED={seed}");
    let mut machine = Machine::new();
    let root = machine.path("root");
    let disk = Disk::mount(&machine, format, &root);
    let daemon = machine.start().await;
    let at_work = neighbour.work(&machine, seed);
    let cri = daemon.cri();
    let life = Life::live(Node { machine: &machine, disk: &disk, cri: &cri }).await;
    drop(at_work);
    let end = disk.moment();
    machine.reboot(daemon);

    for (moment, loss) in moments(&life, end, seed) {
        let when = format!(
            "{format:?}, {neighbour:?}, seed {seed}: {loss:?} at {moment} of {end}, after {:?}",
            life.last_done(moment)
        );
        eprintln!("{when}");
        let image = machine.path("image");
        disk.image(&machine, moment, loss, &image);
        disk.mount_image(&machine, &image, &root);
        life.images.iter().for_each(|image| image.serve(&machine));
        let daemon = machine.start().await;
        let after = After { machine: &machine, cri: daemon.cri(), life: &life, moment, when };
        after.assert_what_is_listed().await;
        after.assert_images_work().await;
        after.assert_all_can_be_removed().await;
        machine.reboot(daemon);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// When power is lost, and what it takes.
fn moments(life: &Life, end: usize, seed: u64) -> Vec<(usize, Loss)> {
    let mut random = Random::new(seed);
    let by_chance = number("BERTH_POWER_MOMENTS").unwrap_or(4);
    let mut moments: Vec<(usize, Loss)> =
        life.done.iter().map(|(_, moment)| (*moment, Loss::Unflushed)).collect();
    // Where nothing was written between two verbs, the disk is the same after both.
    moments.dedup_by_key(|(moment, _)| *moment);
    for _ in 0..by_chance {
        moments.push((random.below(end as u64 + 1) as usize, Loss::Some(random.number())));
    }
    moments
}

/// The node after its next boot.
struct After<'a> {
    machine: &'a Machine,
    cri: Cri,
    life: &'a Life,
    moment: usize,
    when: String,
}

impl After<'_> {
    async fn assert_what_is_listed(&self) {
        let Self { cri, life, when, .. } = self;
        let pods = cri.pods(PodSandboxFilter::default()).await;
        for pod in &pods {
            assert_eq!(pod.state(), PodSandboxState::SandboxNotready, "{when}: {pod:?}");
            let name = pod.metadata.as_ref().map(|metadata| metadata.name.as_str());
            assert!(matches!(name, Some("first" | "second")), "{when}: {pod:?}");
        }
        let containers = cri.containers(ContainerFilter::default()).await;
        for container in &containers {
            let has_pod = pods.iter().any(|pod| pod.id == container.pod_sandbox_id);
            assert!(has_pod, "{when}: {container:?}");
            self.assert_container(&container.id).await;
        }
        for ended in life.ended.iter().filter(|ended| ended.told.contains(&self.moment)) {
            let listed = containers.iter().any(|container| container.id == ended.id);
            assert!(listed, "{when}: {ended:?} is gone");
        }
        let images = cri.images().await;
        for image in life.images.iter().filter(|image| image.kept.contains(&self.moment)) {
            let listed = images.iter().any(|listed| listed.repo_tags == [image.name]);
            assert!(listed, "{when}: {} is gone", image.name);
        }
    }

    /// Asserts that what a container's status says is true.
    async fn assert_container(&self, id: &str) {
        let Self { cri, life, when, .. } = self;
        // Its end is written first, for which a busy disk takes its time.
        let is_known =
            async || cri.status(id).await.unwrap().state() != ContainerState::ContainerUnknown;
        eventually("what became of a container", is_known).await;
        let status = cri.status(id).await.unwrap();
        let ended = life.ended.iter().find(|ended| ended.id == id);
        let was_told = ended.is_some_and(|ended| ended.told.contains(&self.moment));
        let code = ended.map(|ended| ended.code);
        match status.state() {
            ContainerState::ContainerExited => assert!(
                Some(status.exit_code) == code || status.exit_code == 255 && !was_told,
                "{when}: {status:?}"
            ),
            // Its start was not on the disk yet. It cannot be started in a pod that is gone.
            ContainerState::ContainerCreated => {
                assert!(!was_told, "{when}: {status:?}");
                let refused = cri.start(id).await.unwrap_err();
                assert_eq!(refused.code(), Code::FailedPrecondition, "{when}: {refused}");
            }
            _ => panic!("{when}: {status:?}"),
        }
        assert!(status.metadata.is_some() && !status.image_ref.is_empty(), "{when}: {status:?}");
    }

    /// Asserts that the images that are listed are whole, and those that are not can be pulled.
    async fn assert_images_work(&self) {
        let Self { machine, cri, life, when, .. } = self;
        let pod = cri.run_pod(pod(machine, "after")).await.unwrap();
        for listed in cri.images().await {
            assert!(!listed.repo_tags.is_empty(), "{when}: {listed:?}");
            self.assert_whole(&pod, "listed", &listed.repo_tags[0]).await;
        }
        // While containers of before still hold what is left of their layers.
        for image in &life.images {
            cri.pull(image.name).await.unwrap_or_else(|error| panic!("{when}: {error}"));
            self.assert_whole(&pod, "pulled", image.name).await;
        }
    }

    async fn assert_whole(&self, pod: &str, what: &str, name: &str) {
        let Self { cri, life, when, .. } = self;
        let image = life.images.iter().find(|image| image.name == name);
        let image = image.unwrap_or_else(|| panic!("{when}: {name} is {what}"));
        let unique = format!("{what}-{}", &name[..3]);
        let config = container(&unique, name, "exec sleep 1000");
        let id = cri.run(pod, config).await.unwrap_or_else(|error| panic!("{when}: {error}"));
        for (path, digest) in &image.files {
            let sum = cri.sh(&id, &format!("busybox sha256sum {path}")).await;
            let sum = format!("sha256:{}", sum.split(' ').next().unwrap());
            assert_eq!(sum, *digest, "{when}: {path} of {name}, which is {what}");
        }
    }

    async fn assert_all_can_be_removed(&self) {
        let Self { machine, cri, life, when, .. } = self;
        for pod in cri.pods(PodSandboxFilter::default()).await {
            let removed = cri.remove_pod(&pod.id).await;
            removed.unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        for image in &life.images {
            cri.remove_image(image.name).await.unwrap();
        }
        machine.assert_clean().await;
        let mut left = String::from("not looked yet");
        // What is written is synced in the background, for which a busy disk takes its time.
        let deadline = Instant::now() + Duration::from_secs(120);
        while !left.is_empty() {
            assert!(Instant::now() < deadline, "{when}: left behind: {left}");
            left = files(machine, &machine.path("root"));
        }
    }
}

/// What is in a root, but for what is in an empty one.
fn files(machine: &Machine, root: &Path) -> String {
    let script = format!(
        "cd {}; find . ! -type d -o -empty -o -path './layers/*' | grep -vE '^./(lost.found|neighbour|\
            lock|version|reserve|trash|sandboxes|containers|networks|mount-points(/.*)?|\
            layers/empty(/fs)?|\
            images/(oci-layout|index.json(|.synced|.damaged)|pulls|partial|blobs/sha256))$' || true",
        root.display()
    );
    machine.output("sh", &["-c", &script])
}
