//! A full disk under everything that the daemon keeps.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use berth_proto::v1::{self, ContainerState};
use berth_tests::{Capability, Config, Image, Machine, busybox, container, eventually, pod};
use nix::sys::signal::{Signal, kill};
use tonic::Code;

use crate::{shim_of, state, with_volume};

/// A machine whose root is on a small disk of its own, mounted in its namespace only.
pub(crate) struct SmallDisk {
    pub machine: Machine,
    root: PathBuf,
}

impl SmallDisk {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        let root = machine.path("root");
        fs::create_dir_all(&root).unwrap();
        if !Capability::LoopDevices.is_there() {
            machine.output(
                "mount",
                &["-t", "tmpfs", "-o", "size=64m", "tmpfs", root.to_str().unwrap()],
            );
        } else {
            let disk = machine.path("disk");
            File::create(&disk).unwrap().set_len(64 << 20).unwrap();
            machine.output("mkfs.ext4", &["-q", disk.to_str().unwrap()]);
            machine
                .output("mount", &["-o", "loop", disk.to_str().unwrap(), root.to_str().unwrap()]);
        }
        Self { machine, root }
    }

    pub(crate) fn sh(&self, script: &str) -> String {
        self.machine.output("sh", &["-c", &format!("cd {}; {script}", self.root.display())])
    }

    /// Fills the disk to the last byte and inode.
    fn fill(&self) {
        self.sh("mkdir -p fill; n=$(ls fill | wc -l); cat /dev/zero > fill/large$n 2>/dev/null
             while echo x 2>/dev/null > fill/small$n; do n=$((n+1)); done; true");
        assert!(self.sh("echo x 2>/dev/null > probe || echo full; rm -f probe").contains("full"));
    }

    fn empty(&self) {
        self.sh("rm -rf fill");
    }

    /// Remounts it with `option`, `ro` or `rw`, as soon as nobody has a file open for writing.
    pub(crate) async fn remount(&self, option: &str) {
        let mut remount = self.machine.command("mount");
        remount.args(["-o", &format!("remount,{option}")]).arg(&self.root);
        eventually("a disk that nobody writes to", async || {
            remount.output().unwrap().status.success()
        })
        .await;
    }

    /// Lets it fail from now on: every read and write is EIO, as on a disk that was pulled out. What
    /// was written before is on it. Until `replug`.
    pub(crate) fn unplug(&self) {
        self.sh("sync -f .");
        shut_down(&self.machine, self.root.to_str().unwrap());
    }

    /// Mounts it anew. Nobody may have a file of it open.
    pub(crate) async fn replug(&self) {
        let (disk, root) = (self.machine.path("disk"), self.root.display().to_string());
        self.unmount().await;
        self.machine.output("mount", &["-o", "loop", disk.to_str().unwrap(), &root]);
    }

    /// Asserts that nothing is left of pods, there and elsewhere. The daemon has ended.
    pub(crate) async fn assert_clean(self) {
        self.sh("test -z \"$(ls sandboxes containers networks | grep -v :)\"");
        self.unmount().await;
        self.machine.assert_clean().await;
    }

    /// The kernel ends the mounts of a container a moment after its last process.
    async fn unmount(&self) {
        let mut unmount = self.machine.command("umount");
        unmount.arg(&self.root);
        eventually("a disk that nobody uses", async || unmount.output().unwrap().status.success())
            .await;
    }
}

/// Lets every read and write of the file system at `path` fail with EIO: FS_IOC_SHUTDOWN without a
/// flush of the journal, in its form for ext4 and XFS. Perl is on every Debian.
pub(crate) fn shut_down(machine: &Machine, path: &str) {
    let script = "open(my $f, '<', $ARGV[0]) or die $!; my $flags = pack('L', 2);
        ioctl($f, 0x8004587d, $flags) or die $!";
    machine.output("perl", &["-e", script, path]);
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.machine.command("umount").arg("-l").arg(&self.root).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_and_removes_probes_and_tells_the_truth() {
    let disk = SmallDisk::new();
    let machine = &disk.machine;
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(machine, Image::busybox()).await;
    let other = cri
        .pull_image(machine, Image::simple(busybox().file("large", &vec![7; 1 << 20]), &[]))
        .await;
    let sandbox = cri.run_pod(pod(machine, "p")).await.unwrap();
    let sleeps = |name: &str| container(name, &image, "exec sleep 1000");
    let runs = cri.run(&sandbox, sleeps("runs")).await.unwrap();
    let lost = cri.run(&sandbox, sleeps("lost")).await.unwrap();
    let script = "while ! test -e /v/end; do sleep 0.02; done; exit 42";
    let volume = machine.path("volume");
    let ends = cri
        .run(&sandbox, with_volume(machine, &volume, container("ends", &image, script)))
        .await
        .unwrap();
    let created = cri.create(&sandbox, sleeps("created")).await.unwrap();
    // It joins a container that will have ended: its start fails before it has a shim.
    let mut joins = sleeps("joins");
    joins.namespaces().pid = v1::NamespaceMode::Target.into();
    joins.namespaces().target_id.clone_from(&ends);
    let joins = cri.create(&sandbox, joins).await.unwrap();

    disk.fill();
    assert_eq!(cri.sh(&runs, "echo probed").await, "probed\n");
    fs::write(volume.join("end"), "").unwrap();
    assert_eq!(cri.exited(&ends).await.exit_code, 42);
    // This is how the kubelet frees space.
    disk.fill();
    cri.remove_image(&other).await.unwrap();
    assert!(cri.image_status(&other).await.unwrap().is_none());
    // The reserve that the daemon keeps for records is used up as well.
    disk.sh("rm -f reserve");
    disk.fill();
    kill(shim_of(machine, &lost), Signal::SIGKILL).unwrap();
    assert_eq!(cri.exited(&lost).await.exit_code, 137);
    let refused = cri.start(&created).await.unwrap_err();
    assert!(refused.message().contains("No space left"), "{refused}");
    cri.start(&joins).await.unwrap_err();
    for id in [&created, &joins] {
        assert_eq!(state(&cri, id).await, ContainerState::ContainerExited);
    }
    cri.stop(&runs, 0).await.unwrap();
    assert_eq!(state(&cri, &runs).await, ContainerState::ContainerExited);
    let refused = cri.create(&sandbox, sleeps("more")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");

    daemon.kill();
    disk.fill();
    let daemon = machine.start().await;
    for (id, code) in [(&ends, 42), (&lost, 137), (&runs, 137), (&created, 128), (&joins, 128)] {
        let status = cri.status(id).await.unwrap();
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerState::ContainerExited, code),
            "{status:?}"
        );
    }
    cri.remove(&created).await.unwrap();
    cri.stop_pod(&sandbox).await.unwrap();
    disk.empty();
    // Pending records are on disk now, and the next full disk is met with a new reserve.
    eventually("the records and the reserve", async || {
        disk.sh(&format!("test -e containers/{lost}/exit.json && stat -c %s reserve || true"))
            .trim()
            == "4194304"
    })
    .await;
    disk.fill();
    cri.remove_pod(&sandbox).await.unwrap();
    eventually("an empty root", async || {
        disk.sh("ls sandboxes containers trash networks | grep -v :").trim().is_empty()
    })
    .await;
    assert!(machine.shims().is_empty());
    drop(daemon);
}
