//! More containers than a node ever has: those that have ended, and that nobody has collected.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{container, eventually, pod, ready};

const MANY: usize = 10_000;
/// More than it takes on a machine that is slow and busy, and less than it takes for the kubelet to
/// give up a request, which is two minutes.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes a copy of an exited container's records under another id.
fn copy(from: &Path, to: &Path, (id, other): (&str, &str)) {
    fs::create_dir_all(to.join("upper")).unwrap();
    for name in ["meta.json", "started.json", "exit.json"] {
        let text = fs::read_to_string(from.join(name)).unwrap();
        // The unique name has the container's name in it.
        let text = text.replace(id, other).replace("original", &format!("copy-{other}"));
        fs::write(to.join(name), text).unwrap();
    }
    fs::write(to.join("lock"), "").unwrap();
}

#[tokio::test]
async fn ten_thousand_exited_containers_are_listed_and_removed() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let runs = cri.run(&sandbox, container("runs", &image, "exec sleep 1000")).await.unwrap();
    let other = cri.run_pod(pod(&machine, "other")).await.unwrap();
    let original = cri.run(&other, container("original", &image, "exit 7")).await.unwrap();
    cri.exited(&original).await;
    daemon.kill();
    let containers = machine.path("root/containers");
    for number in 1..MANY {
        let id = format!("{number:064x}");
        copy(&containers.join(&original), &containers.join(&id), (&original, &id));
    }
    let begun = Instant::now();
    let _daemon = machine.start().await;
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(cri.sh(&runs, "echo served").await, "served\n");
    let all = cri.containers(v1::ContainerFilter::default()).await;
    assert_eq!(all.len(), MANY + 1);
    eventually("their ends", async || {
        let filter = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue {
                state: v1::ContainerState::ContainerExited.into(),
            }),
            ..Default::default()
        };
        cri.containers(filter).await.len() == MANY
    })
    .await;
    assert_eq!(cri.status(&format!("{:064x}", MANY / 2)).await.unwrap().exit_code, 7);
    let begun = Instant::now();
    cri.remove_pod(&other).await.unwrap();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(cri.containers(v1::ContainerFilter::default()).await.len(), 1);
    cri.remove_pod(&sandbox).await.unwrap();
    eventually("an empty trash", async || {
        fs::read_dir(machine.path("root/trash")).unwrap().next().is_none()
    })
    .await;
    machine.assert_clean().await;
}
