//! A disk without room for an image, and one that is mounted read-only.

use std::{fs, path::PathBuf};

use berth_proto::v1;
use berth_tests::{Capability, FakeRegistry, Image, Machine, busybox, eventually, pod};
use tonic::Code;

#[tokio::test]
async fn a_full_disk_and_a_read_only_one_are_told_and_leave_nothing() {
    let machine = Machine::new();
    let (root, state): (PathBuf, PathBuf) = (machine.path("root"), machine.path("state"));
    fs::create_dir_all(&root).unwrap();
    if !Capability::LoopDevices.is_there() {
        machine
            .output("mount", &["-t", "tmpfs", "-o", "size=200m", "tmpfs", root.to_str().unwrap()]);
    } else {
        let disk = machine.path("disk");
        fs::File::create(&disk).unwrap().set_len(200 << 20).unwrap();
        machine.output("mkfs.ext4", &["-q", disk.to_str().unwrap()]);
        machine.output("mount", &["-o", "loop", disk.to_str().unwrap(), root.to_str().unwrap()]);
    }
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let large = Image::simple(busybox().file("big", &vec![7; 220 << 20]), &["true"]);
    let registry = FakeRegistry::start(&machine, large, |_| None);
    let full = cri.pull(&format!("{}/big:1", registry.host)).await.unwrap_err();
    assert!(
        full.code() == Code::ResourceExhausted && full.message().contains("No space left"),
        "{full}"
    );
    let registry = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let name = format!("{}/a:1", registry.host);
    cri.pull(&name).await.expect("there is room again");
    // The remount succeeds only when nothing has a file open for writing, so it is tried until the
    // daemon's background work is done.
    let mut remount = machine.command("mount");
    remount.args(["-o", "remount,ro"]).arg(&root);
    eventually("a disk that nobody writes to", async || remount.output().unwrap().status.success())
        .await;
    for error in [
        cri.run_pod(pod(&machine, "p")).await.unwrap_err(),
        cri.pull("127.0.0.1:1/other").await.unwrap_err(),
        cri.remove_image(&name).await.unwrap_err(),
    ] {
        assert!(!error.message().is_empty() && error.code() != Code::Ok, "{error}");
    }
    let status = cri
        .runtime
        .clone()
        .status(v1::StatusRequest::default())
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert!(
        !status
            .conditions
            .iter()
            .find(|condition| condition.r#type == "RuntimeReady")
            .unwrap()
            .status
    );
    machine.output("mount", &["-o", "remount,rw", root.to_str().unwrap()]);
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    cri.remove_pod(&sandbox).await.unwrap();
    drop(daemon);
    machine.output("umount", &[root.to_str().unwrap()]);
    assert!(fs::read_dir(state.join("sandboxes")).unwrap().next().is_none());
}
