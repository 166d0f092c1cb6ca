//! Log files in the format that the kubelet reads: lines are split at 16 KiB, and
//! ReopenContainerLog follows a rotation.

use std::fs;

use berth_proto::v1;
use berth_tests::{container, eventually, pod, ready};
use tonic::Code;

#[tokio::test]
async fn logs_are_cut_at_16_kib_and_reopened() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "logs")).await.unwrap();
    let script =
        "yes a | tr -d '\\n' | head -c 40000; echo; while true; do echo tick; sleep 0.02; done";
    let id = cri.run(&sandbox, container("c", &image, script)).await.unwrap();
    let path = cri.status(&id).await.unwrap().log_path;
    eventually("the long line", async || fs::read_to_string(&path).unwrap().contains("tick")).await;
    let log = fs::read_to_string(&path).unwrap();
    let tags: Vec<&str> = log.lines().take(3).map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags, ["P", "P", "F"]);
    let joined: usize =
        log.lines().take(3).map(|line| line.splitn(4, ' ').nth(3).unwrap().len()).sum();
    assert_eq!(joined, 40000);
    fs::rename(&path, format!("{path}.1")).unwrap();
    let mut runtime = cri.runtime.clone();
    runtime
        .reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.clone() })
        .await
        .unwrap();
    assert!(fs::exists(&path).unwrap());
    let old = fs::read_to_string(format!("{path}.1")).unwrap().len();
    eventually("lines in the new file", async || {
        fs::read_to_string(&path).unwrap().contains("tick")
    })
    .await;
    assert_eq!(fs::read_to_string(format!("{path}.1")).unwrap().len(), old);
    cri.stop(&id, 0).await.unwrap();
    fs::remove_file(&path).unwrap();
    let refused = runtime
        .reopen_container_log(v1::ReopenContainerLogRequest { container_id: id })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(!fs::exists(&path).unwrap(), "an ended container's log is not made anew");
}
