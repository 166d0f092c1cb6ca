//! StopContainer: the stop signal, the grace period, and SIGKILL after it.

use std::fs;

use berth_proto::v1;
use berth_tests::{container, eventually, pod, ready};

#[tokio::test]
async fn stop_signals_waits_and_kills() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "stop")).await.unwrap();
    // The kernel does not deliver a signal to a first process that has no handler for it
    // (pid_namespaces(7)), so the trap must be set before the stop.
    let running = async |config| {
        let id = cri.run(&sandbox, config).await.unwrap();
        let path = cri.status(&id).await.unwrap().log_path;
        eventually("its trap", async || fs::read_to_string(&path).unwrap().contains("ready")).await;
        id
    };
    let polite = running(container(
        "polite",
        &image,
        "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.05; done",
    ))
    .await;
    cri.stop(&polite, 20).await.unwrap();
    let status = cri.status(&polite).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 5));
    assert!(fs::read_to_string(status.log_path).unwrap().contains("bye"));
    cri.stop(&polite, 20).await.unwrap();

    let stubborn =
        |name| container(name, &image, "trap '' TERM; echo ready; while true; do sleep 0.05; done");
    let killed = running(stubborn("killed")).await;
    cri.stop(&killed, 1).await.unwrap();
    assert_eq!(cri.status(&killed).await.unwrap().exit_code, 137);

    // A second stop with a shorter grace period takes effect, and a caller that gives up stops
    // nothing.
    let shorter = running(stubborn("shorter")).await;
    let patient = tokio::spawn({
        let cri = cri.clone();
        let id = shorter.clone();
        async move { cri.stop(&id, 600).await }
    });
    eventually("the first stop's record", async || {
        machine.path(&format!("root/containers/{shorter}/stop.json")).exists()
    })
    .await;
    patient.abort();
    cri.stop(&shorter, 0).await.unwrap();
    assert_eq!(cri.status(&shorter).await.unwrap().exit_code, 137);

    let mut own =
        container("own", &image, "trap 'exit 9' USR1; echo ready; while true; do sleep 0.05; done");
    own.stop_signal = v1::Signal::Sigusr1.into();
    let own = running(own).await;
    assert_eq!(cri.status(&own).await.unwrap().stop_signal(), v1::Signal::Sigusr1);
    cri.stop(&own, 20).await.unwrap();
    assert_eq!(cri.status(&own).await.unwrap().exit_code, 9);
    // Children that ignore all signals end with the first process.
    let family = cri
        .run(
            &sandbox,
            container(
                "family",
                &image,
                "setsid sh -c 'trap \"\" TERM; sleep 1000' & exec sleep 1000",
            ),
        )
        .await
        .unwrap();
    cri.stop_pod(&sandbox).await.unwrap();
    assert_eq!(cri.status(&family).await.unwrap().state(), v1::ContainerState::ContainerExited);
    assert!(machine.shims().is_empty());
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
