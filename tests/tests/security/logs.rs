//! Log files in a directory that a pod has as a volume, or whose disk is full.

use std::{fs, os::unix::fs::symlink, path::Path};

use berth_proto::v1;
use berth_tests::{container, eventually, pod, ready};
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::paths::Exchange;

/// CVE-2025-0750: a pod that has the directory of logs as a volume decides what is at the paths
/// that the runtime opens.
#[tokio::test]
async fn a_log_is_written_through_no_link_and_into_no_other_file() {
    let (machine, _daemon, cri, image) = ready().await;
    let outside = machine.path("outside");
    let secret = machine.path("secret");
    fs::create_dir(&outside).unwrap();
    fs::write(&secret, "secret").unwrap();
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let logs = machine.path("logs/p");
    symlink(&outside, logs.join("directory")).unwrap();
    symlink(&secret, logs.join("link.log")).unwrap();
    fs::hard_link(&secret, logs.join("name.log")).unwrap();
    mkfifo(&logs.join("fifo.log"), Mode::from_bits_truncate(0o666)).unwrap();
    let logging = |name: &str, path: &str| v1::ContainerConfig {
        log_path: path.to_owned(),
        ..container(name, &image, "while :; do echo tick; sleep 0.02; done")
    };
    for (path, what) in [
        ("directory/0.log", "is not followed"),
        ("link.log", "is not followed"),
        ("name.log", "one name"),
        ("fifo.log", "fifo.log"),
    ] {
        let id = cri.create(&sandbox, logging("c", path)).await.unwrap();
        let refused = cri.start(&id).await.unwrap_err();
        assert!(refused.message().contains(what), "{path}: {refused}");
        cri.remove(&id).await.unwrap();
    }
    // The same after a rotation; the log that was open then stays in use.
    let id = cri.run(&sandbox, logging("c", "own/0.log")).await.unwrap();
    let (log, rotated) = (logs.join("own/0.log"), logs.join("own/0.log.1"));
    fs::rename(&log, &rotated).unwrap();
    for put in [
        |from: &Path, to: &Path| symlink(from, to),
        |from: &Path, to: &Path| fs::hard_link(from, to),
    ] {
        put(&secret, &log).unwrap();
        let reopen = v1::ReopenContainerLogRequest { container_id: id.clone() };
        cri.runtime.clone().reopen_container_log(reopen).await.unwrap_err();
        fs::remove_file(&log).unwrap();
    }
    let length = fs::metadata(&rotated).unwrap().len();
    eventually("lines in the old file", async || fs::metadata(&rotated).unwrap().len() > length)
        .await;
    cri.remove(&id).await.unwrap();
    // The same with the pod's log directory, and as a race.
    let attacker = Exchange::begin(logs.join("race"), outside.clone());
    for number in 0..40 {
        let id = cri.create(&sandbox, logging(&format!("r{number}"), "race/0.log")).await.unwrap();
        let _ = cri.start(&id).await;
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "start {number} logs outside");
        cri.remove(&id).await.unwrap();
    }
    assert!(attacker.end() > 1000, "there was no race");
    fs::rename(&logs, machine.path("logs/q")).unwrap();
    symlink(&outside, &logs).unwrap();
    let refused = cri.run(&sandbox, logging("d", "0.log")).await.unwrap_err();
    assert!(refused.message().contains("is not followed"), "{refused}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

const LINES: usize = 4000;

/// Reads the log: the number of the line that comes after `text`, and how many lines are reported
/// as lost, when `next` was to come.
fn account(text: &str, next: usize) -> (usize, usize) {
    if let Some(number) = text.strip_prefix("line ") {
        assert_eq!(number, next.to_string());
        return (next + 1, 0);
    }
    let lost: usize =
        text.strip_prefix("berth: ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(text.contains("lost here: No space left on device"), "{text}");
    (next + lost, lost)
}

#[tokio::test]
async fn lines_that_did_not_fit_on_the_disk_are_counted_in_the_log() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let logs = machine.path("logs/p").display().to_string();
    machine.output("mount", &["-t", "tmpfs", "-o", "size=128k", "tmpfs", &logs]);
    machine.output(
        "dd",
        &["if=/dev/zero", &format!("of={logs}/ballast"), "bs=64k", "count=1", "status=none"],
    );
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; touch /tmp/done
        until [ -e /tmp/go ]; do sleep 0.02; done; echo after; exec sleep 1000"
    );
    let id = cri.run(&sandbox, container("c", &image, &script)).await.unwrap();
    eventually("the last line", async || cri.sh(&id, "ls /tmp").await == "done\n").await;
    machine.output("rm", &[&format!("{logs}/ballast")]);
    cri.sh(&id, "touch /tmp/go").await;
    let read = || machine.output("cat", &[&format!("{logs}/c.log")]);
    eventually("a line after the others", async || read().ends_with(" stdout F after\n")).await;
    let log = read();
    let mut next = 0;
    let mut missing = 0;
    for line in log.strip_suffix('\n').unwrap().lines() {
        let [time, stream, tag, text] = line.splitn(4, ' ').collect::<Vec<_>>()[..] else {
            panic!("{line:?}")
        };
        assert!(time.len() == 30 && time.ends_with('Z') && tag == "F", "{line:?}");
        if text != "after" {
            let (then, lost) = account(text, next);
            assert_eq!(stream, if lost > 0 { "stderr" } else { "stdout" }, "{line:?}");
            (next, missing) = (then, missing + lost);
        }
    }
    assert!(next == LINES && missing > 0, "{next} lines, {missing} of them missing");
    cri.remove(&id).await.unwrap();
    machine.output("umount", &[&logs]);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
