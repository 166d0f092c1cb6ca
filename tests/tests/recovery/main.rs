//! Crashes and faults: the daemon or a shim ends, a record or a disk is damaged, something hangs.
//! Everything else is still served.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod churn;
mod clock;
mod crash;
mod disk;
mod faults;
mod life;
mod load;
mod lock;
mod logs;
mod many;
mod node_records;
mod power;
mod read_only;
mod reboot;
mod records;
mod restart;
mod shim_client;
mod steps;
mod upgrade;

use std::{
    fs::{self},
    path::Path,
    time::Duration,
};

use berth_proto::v1::{self, ContainerState};
use berth_tests::{Cri, Machine, bind};
use nix::unistd::Pid;

/// Longer than any request takes that waits for nothing, and shorter than anything that hangs.
const SOON: Duration = Duration::from_secs(10);

fn with_volume(
    machine: &Machine,
    source: &Path,
    config: v1::ContainerConfig,
) -> v1::ContainerConfig {
    fs::create_dir_all(machine.path("volume")).unwrap();
    v1::ContainerConfig { mounts: vec![bind(source, "/v")], ..config }
}

fn shim_of(machine: &Machine, id: &str) -> Pid {
    let (pid, _) =
        machine.shims().into_iter().find(|(_, command)| command.contains(id)).expect("its shim");
    Pid::from_raw(pid)
}

async fn state(cri: &Cri, id: &str) -> ContainerState {
    cri.status(id).await.unwrap().state()
}
