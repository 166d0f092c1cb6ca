//! Many pods: hundreds of them, made and removed at the same time, with a daemon and plugins that
//! are killed meanwhile.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::v1;
use berth_tests::{Capability, Machine, binary, eventually, skip_without, without_load};
use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{tcp, with_ports};

#[tokio::test]
async fn five_hundred_pods_have_five_hundred_addresses_and_leave_none() {
    let _alone = without_load().await;
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let mut ids = Vec::new();
    for batch in 0..25 {
        let runs = (0..20).map(|number| {
            let number = batch * 20 + number;
            // Every fifth pod has a port of the host.
            let ports = if number % 5 == 0 && Capability::Nat.is_there() {
                vec![tcp(20000 + number, 80)]
            } else {
                Vec::new()
            };
            cri.run_pod(with_ports(&machine, &format!("pod{number}"), ports))
        });
        ids.extend(join_all(runs).await.into_iter().map(Result::unwrap));
    }
    let mut addresses = BTreeSet::new();
    for id in &ids {
        addresses.insert(cri.pod_status(id).await.unwrap().network.unwrap().ip);
    }
    assert_eq!(addresses.len(), 500);
    for batch in ids.chunks(20) {
        join_all(batch.iter().map(|id| cri.remove_pod(id)))
            .await
            .into_iter()
            .for_each(Result::unwrap);
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn pods_made_and_removed_at_once_leave_no_port_of_the_host_and_a_start_frees_what_was_left() {
    if skip_without(Capability::Nat) {
        return;
    }
    let _alone = without_load().await;
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let make = async |worker: i32| {
        let mut ids = Vec::new();
        for number in (worker..120).step_by(8) {
            let ports = (0..8).map(|port| tcp(20000 + number * 8 + port, 80)).collect();
            ids.push(
                cri.run_pod(with_ports(&machine, &format!("pod{number}"), ports)).await.unwrap(),
            );
        }
        ids
    };
    let remove = async |ids: Vec<String>| {
        for id in ids {
            cri.remove_pod(&id).await.unwrap();
        }
    };
    let made = join_all((0..8).map(make)).await;
    join_all(made.into_iter().map(remove)).await;
    machine.assert_clean().await;
    // Elements of a pod that no record names, and of another network.
    for (port, network) in [(7000, "berth"), (7001, "others")] {
        let element =
            format!("{{ tcp . {port} comment \"gone eth0 {network}\" : 10.88.0.99 . 80 }}");
        machine.output("nft", &["add", "element", "inet", "berth", "ports4", &element]);
    }
    daemon.kill();
    let _daemon = machine.start().await;
    let rules = || machine.output("nft", &["list", "ruleset"]);
    eventually("the GC of the start", async || !rules().contains("gone eth0 berth")).await;
    assert!(rules().contains("gone eth0 others"), "{}", rules());
}

/// Kills a running berth-bridge of this machine every now and then.
fn assassin(machine: &Machine, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u32> {
    let own = machine.dir.path().display().to_string();
    let program = binary("berth-bridge").canonicalize().unwrap();
    std::thread::spawn(move || {
        let mut killed = 0;
        let mut seen = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let is_one = fs::read_link(entry.path().join("exe"))
                    .is_ok_and(|path| path == program)
                    && fs::read(entry.path().join("environ"))
                        .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&own));
                if !is_one {
                    continue;
                }
                seen += 1;
                if seen.is_multiple_of(3) {
                    let pid: i32 = entry.file_name().to_string_lossy().parse().unwrap();
                    killed += u32::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
                }
            }
        }
        killed
    })
}

#[tokio::test]
async fn pods_whose_daemon_and_plugins_are_killed_at_any_moment_leave_nothing() {
    let _alone = without_load().await;
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    let rules = || machine.output("nft", &["list", "ruleset"]);
    let has_nat = Capability::Nat.is_there();
    let ports = |number: i32| if has_nat { vec![tcp(20000 + number, 80)] } else { Vec::new() };
    // The first pod makes the bridge and the table, which stay.
    let first = daemon.cri().run_pod(with_ports(&machine, "first", ports(0))).await.unwrap();
    daemon.cri().remove_pod(&first).await.unwrap();
    let before = rules();
    let stop = Arc::new(AtomicBool::new(false));
    let assassin = assassin(&machine, stop.clone());
    for round in 0..30 {
        let cri = daemon.cri();
        let lives: Vec<_> = (0..10)
            .map(|number| {
                let number = round * 10 + number;
                let (cri, config) =
                    (cri.clone(), with_ports(&machine, &format!("pod{number}"), ports(number + 1)));
                tokio::spawn(async move {
                    let id = cri.run_pod(config).await?;
                    cri.remove_pod(&id).await
                })
            })
            .collect();
        // Ten pods live and go in about 300 ms, so the daemon is killed at all stages of that.
        tokio::time::sleep(Duration::from_millis((round as u64 * 37) % 300)).await;
        daemon.kill();
        for life in lives {
            let _ = life.await.unwrap();
        }
        daemon = machine.start().await;
    }
    stop.store(true, Ordering::Relaxed);
    let killed = assassin.join().unwrap();
    assert!(killed > 20, "only {killed} plugins were killed");
    daemon.kill();
    let daemon = machine.start().await;
    for sandbox in daemon.cri().pods(v1::PodSandboxFilter::default()).await {
        daemon.cri().remove_pod(&sandbox.id).await.unwrap();
    }
    eventually("every DEL", async || {
        fs::read_dir(machine.path("root/networks")).unwrap().next().is_none()
    })
    .await;
    machine.assert_clean().await;
    assert_eq!(rules(), before);
}
