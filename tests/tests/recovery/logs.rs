//! A disk under a container's log that takes nothing: the container never waits for it, and the log
//! says how much is missing as soon as it can.

use std::fs;

use berth_proto::v1;
use berth_tests::{Capability, Cri, Machine, container, eventually, pod, ready, skip_without};

use crate::{disk::shut_down, with_volume};

/// More lines than the log's disk has room for.
const LINES: usize = 8000;

/// Runs a pod with a container that waits for a file `begin`, writes `LINES`, waits for a file
/// `more`, and writes one more line.
async fn start(machine: &Machine, cri: &Cri, image: &str) -> (String, String) {
    let sandbox = cri.run_pod(pod(machine, "p")).await.unwrap();
    let script = format!(
        "wait_for() {{ while ! [ -e /v/$1 ]; do sleep 0.02; done; }}
         wait_for begin
         i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; done; touch /v/written
         wait_for more; echo after; exit 7"
    );
    let volume = machine.path("volume");
    let config = with_volume(machine, &volume, container("c", image, &script));
    let id = cri.run(&sandbox, config).await.unwrap();
    (sandbox, id)
}

/// Asserts that a log has all lines up to the first that is missing, then one that says how many
/// are missing and why, and then those that the shim read after there was room again: a part of the
/// `LINES` may still have been in the container's pipe.
fn assert_counted(whole: &str, why: &str) {
    let texts: Vec<&str> = whole.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap()).collect();
    let gap = texts.iter().position(|text| !text.starts_with("line ")).expect("a gap");
    let told = texts[gap].strip_prefix("berth: ").expect("how many lines are lost");
    let (lost, reason) = told.split_once(" lines lost here: ").expect("why lines are lost");
    assert!(reason.contains(why), "{reason}");
    let lost: usize = lost.parse().expect("a number of lines");
    let is_there = |number: &usize| *number <= gap || *number > gap + lost;
    let mut expected: Vec<String> =
        (1..=LINES).filter(is_there).map(|number| format!("line {number}")).collect();
    expected.insert(gap, texts[gap].to_owned());
    expected.push("after".to_owned());
    assert!(lost > 0 && texts == expected, "{texts:?}");
}

#[tokio::test]
async fn a_full_disk_under_a_log_costs_lines_that_are_counted() {
    let (machine, _daemon, cri, image) = ready().await;
    let logs = machine.path("logs/p");
    fs::create_dir_all(&logs).unwrap();
    let logs = logs.to_str().unwrap().to_owned();
    machine.output("mount", &["-t", "tmpfs", "-o", "size=128k", "tmpfs", &logs]);
    let (sandbox, id) = start(&machine, &cri, &image).await;
    fs::write(machine.path("volume/begin"), "").unwrap();
    eventually("all lines", async || machine.path("volume/written").exists()).await;
    machine.output("mount", &["-o", "remount,size=4m", &logs]);
    fs::write(machine.path("volume/more"), "").unwrap();
    assert_eq!(cri.exited(&id).await.exit_code, 7);
    let whole = machine.output("cat", &[&format!("{logs}/c.log")]);
    assert_counted(&whole, "No space left on device");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.output("umount", &[&logs]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_disk_that_fails_under_a_log_costs_lines_that_are_counted() {
    if skip_without(Capability::LoopDevices) {
        return;
    }
    let (machine, _daemon, cri, image) = ready().await;
    let (logs, disk) = (machine.path("logs/p"), machine.path("disk"));
    fs::create_dir_all(&logs).unwrap();
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let (logs, disk) = (logs.to_str().unwrap().to_owned(), disk.to_str().unwrap().to_owned());
    machine.output("mkfs.ext4", &["-q", &disk]);
    machine.output("mount", &["-o", "loop", &disk, &logs]);
    let (sandbox, id) = start(&machine, &cri, &image).await;
    let volume = machine.path("volume");
    shut_down(&machine, &logs);
    fs::write(volume.join("begin"), "").unwrap();
    eventually("all lines", async || volume.join("written").exists()).await;
    // Another disk in its place, and the kubelet's rotation.
    machine.output("umount", &["-l", &logs]);
    let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
    cri.runtime.clone().reopen_container_log(request).await.unwrap();
    fs::write(volume.join("more"), "").unwrap();
    assert_eq!(cri.exited(&id).await.exit_code, 7);
    let whole = fs::read_to_string(machine.path("logs/p/c.log")).unwrap();
    assert_counted(&whole, "error");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
