//! Things that hang or run out: mounts, shims, descriptors, a lock. The one object that they happen
//! to is in trouble, and can be listed, stopped and removed; all others are served.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use berth_proto::v1::{self, ContainerState};
use berth_tests::{Daemon, Machine, container, eventually, pod, ready};
use nix::sys::signal::{Signal, kill};
use tokio::net::UnixStream;
use tonic::Code;

use crate::{SOON, shim_of, state, with_volume};

/// Mounts a FUSE filesystem whose daemon never answers.
fn dead_mount(machine: &Machine) -> (PathBuf, File) {
    let dead = machine.path("dead");
    fs::create_dir(&dead).unwrap();
    let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let mounted = machine
        .command("mount")
        .args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "dead"])
        .arg(&dead)
        .stdin(fuse.try_clone().unwrap())
        .status()
        .unwrap();
    assert!(mounted.success());
    (dead, fuse)
}

#[tokio::test]
async fn a_launch_that_hangs_holds_up_no_restart_and_can_be_stopped() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let well = cri.run(&sandbox, container("well", &image, "exec sleep 1000")).await.unwrap();
    let (dead, _fuse) = dead_mount(&machine);
    let config = with_volume(&machine, &dead.join("sub"), container("hangs", &image, "true"));
    let hangs = cri.create(&sandbox, config).await.unwrap();
    let starting = tokio::spawn({
        let cri = cri.clone();
        let id = hangs.clone();
        async move { cri.start(&id).await }
    });
    // A launch whose shim has its cgroup does not need the daemon any more.
    let opens_mounts = |(pid, command): &(i32, String)| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        command.contains(&hangs) && name.starts_with("mount ")
    };
    eventually("its mounts", async || machine.shims().iter().any(opens_mounts)).await;
    daemon.kill();
    starting.await.unwrap().unwrap_err();
    let begun = Instant::now();
    let _daemon = machine.start().await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(cri.sh(&well, "echo served").await, "served\n");
    let status = cri.status(&hangs).await.unwrap();
    assert!(
        status.state() == ContainerState::ContainerUnknown && !status.message.is_empty(),
        "{status:?}"
    );
    cri.stop(&hangs, 0).await.unwrap();
    let status = cri.exited(&hangs).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{status:?}");
    assert!(begun.elapsed() < SOON * 2, "{:?}", begun.elapsed());
    cri.remove_pod(&sandbox).await.unwrap();
    assert!(machine.command("umount").arg("-l").arg(&dead).status().unwrap().success());
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_stopped_shim_is_waited_for_no_longer_than_the_caller_wants() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("stands", &image, "exec sleep 1000")).await.unwrap();
    let well = cri.run(&sandbox, container("well", &image, "exec sleep 1000")).await.unwrap();
    kill(shim_of(&machine, &id), Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let refused = cri.exec(&id, &["true"], 1).await.unwrap_err();
    assert!(
        refused.code() == Code::DeadlineExceeded && begun.elapsed() < SOON,
        "{refused} {:?}",
        begun.elapsed()
    );
    assert_eq!(cri.sh(&well, "echo served").await, "served\n");
    let begun = Instant::now();
    cri.stop(&id, 1).await.unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(cri.status(&id).await.unwrap().exit_code, 137);
    // A stopped shim at the time when the whole pod is removed.
    kill(shim_of(&machine, &well), Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    cri.remove_pod(&sandbox).await.unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_directory_of_conf_lists_that_hangs_is_told_and_holds_up_nothing_else() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let (dead, _fuse) = dead_mount(&machine);
    let confs = machine.path("net.d");
    let has_confs = confs.exists();
    fs::create_dir_all(&confs).unwrap();
    machine.output("mount", &["--move", dead.to_str().unwrap(), confs.to_str().unwrap()]);
    let status = async || {
        let status = cri.runtime.clone().status(v1::StatusRequest { verbose: true }).await.unwrap();
        let conditions = status.into_inner().status.unwrap().conditions;
        conditions.into_iter().map(|condition| (condition.status, condition.message))
    };
    // More at once than the daemon has threads that serve requests.
    let begun = Instant::now();
    let asked = futures_util::future::join_all((0..20).map(|_| status())).await;
    for conditions in asked {
        let found: Vec<(bool, String)> = conditions.collect();
        assert!(found[0].0 && !found[1].0, "{found:?}");
        assert!(found[1].1.contains("has not answered"), "{found:?}");
    }
    assert_eq!(cri.sh(&id, "echo served").await, "served\n");
    let stats = v1::ContainerStatsRequest { container_id: id.clone() };
    cri.runtime.clone().container_stats(stats).await.unwrap();
    cri.run_pod(pod(&machine, "more")).await.unwrap_err();
    assert!(begun.elapsed() < SOON * 3, "{:?}", begun.elapsed());
    cri.remove_pod(&sandbox).await.unwrap();
    machine.output("umount", &["-l", confs.to_str().unwrap()]);
    if !has_confs {
        fs::remove_dir(&confs).unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn without_free_descriptors_one_client_is_refused_and_the_others_are_served() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let pid = daemon.pid().to_string();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |soft: usize| {
        let limited = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={soft}:")])
            .status()
            .unwrap();
        assert!(limited.success());
    };
    limit(open + 2);
    let mut clients = Vec::new();
    eventually("a client that is refused", async || {
        clients.push(UnixStream::connect(&daemon.socket).await.unwrap());
        daemon.log().contains("a client is refused")
    })
    .await;
    // On an existing connection a request is refused, or served.
    for _ in 0..20 {
        let _ = cri.exec(&id, &["true"], 5).await;
        let _ = cri.run_pod(pod(&machine, "more")).await;
        assert_eq!(state(&cri, &id).await, ContainerState::ContainerRunning);
    }
    drop(clients);
    limit(1000);
    eventually("an exec", async || cri.exec(&id, &["true"], 5).await.is_ok()).await;
    for pod in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&pod.id).await.unwrap();
    }
    machine.assert_clean().await;
}

/// A cgroup that bounds how many processes and threads a daemon may have.
struct PidsLimit(PathBuf);

impl PidsLimit {
    /// Moves a daemon into a new one without a limit.
    fn new(machine: &Machine, daemon: &Daemon) -> Self {
        let roots = [Path::new("/sys/fs/cgroup/pids"), Path::new("/sys/fs/cgroup")];
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists()).unwrap();
        let cgroup = Self(root.join(format!("{}-daemon", machine.cgroup_parent)));
        fs::create_dir(&cgroup.0).unwrap();
        fs::write(cgroup.0.join("cgroup.procs"), daemon.pid().to_string()).unwrap();
        cgroup
    }

    fn set(&self, limit: &str) {
        fs::write(self.0.join("pids.max"), limit).unwrap();
    }

    fn current(&self) -> usize {
        fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for PidsLimit {
    fn drop(&mut self) {
        let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            // To the root. A process that ends meanwhile needs no place.
            let _ = fs::write(self.0.with_file_name("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn without_a_process_to_spare_verbs_fail_and_the_daemon_goes_on() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let script = "until [ -e /v/end ]; do sleep 0.1; done; exit 7";
    let ends = with_volume(&machine, &machine.path("volume"), container("ends", &image, script));
    let ends = cri.run(&sandbox, ends).await.unwrap();
    let limit = PidsLimit::new(&machine, &daemon);
    // Threads without work end after ten seconds. A later one that is needed cannot begin.
    let before = limit.current();
    eventually("the end of a thread", async || limit.current() < before).await;
    limit.set("1");
    fs::write(machine.path("volume/end"), "").unwrap();
    for _ in 0..20 {
        let refused = cri.run_pod(pod(&machine, "more")).await.unwrap_err();
        assert!(refused.message().contains("Resource temporarily unavailable"), "{refused}");
        // One that runs needs no process of the daemon's.
        cri.exec(&id, &["true"], 5).await.unwrap();
        assert_eq!(state(&cri, &id).await, ContainerState::ContainerRunning);
    }
    limit.set("max");
    assert_eq!(cri.exited(&ends).await.exit_code, 7);
    cri.run(&sandbox, container("d", &image, "exec sleep 1000")).await.unwrap();
    drop(limit);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
