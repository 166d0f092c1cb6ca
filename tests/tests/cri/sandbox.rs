//! The life of a pod: RunPodSandbox to RemovePodSandbox, names, lists, and who reaches whom.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt};

use berth_proto::v1;
use berth_tests::{Machine, container, eventually, pod, ready};
use tonic::Code;

#[tokio::test]
async fn a_pod_lives_and_goes_and_leaves_nothing() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "one")).await.unwrap();
    let status = cri.pod_status(&sandbox).await.unwrap();
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with("10.88."), "{ip}");

    let id = cri
        .create(&sandbox, container("main", &image, "echo out; echo err >&2; printf tail; exit 3"))
        .await
        .unwrap();
    let created = cri.status(&id).await.unwrap();
    assert_eq!((created.state(), created.started_at), (v1::ContainerState::ContainerCreated, 0));
    assert!(
        created.created_at > 0
            && created.image_id.starts_with("sha256:")
            && created.image_ref.contains('@')
    );
    cri.start(&id).await.unwrap();
    let exited = cri.exited(&id).await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    assert!(exited.started_at >= exited.created_at && exited.finished_at >= exited.started_at);
    let log = fs::read_to_string(&exited.log_path).unwrap();
    let lines: Vec<(&str, &str)> = log.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let mut said: Vec<&str> = lines.iter().map(|(_, rest)| *rest).collect();
    said.sort_unstable();
    assert_eq!(said, ["stderr F err", "stdout F out", "stdout P tail"]);
    assert!(
        lines
            .iter()
            .all(|(time, _)| time.len() == "2016-10-06T00:17:09.669794202Z".len()
                && time.ends_with('Z')),
        "{log}"
    );
    assert_eq!(fs::metadata(&exited.log_path).unwrap().mode() & 0o777, 0o640);

    assert_eq!(cri.start(&id).await.unwrap_err().code(), Code::FailedPrecondition);
    cri.remove(&id).await.unwrap();
    assert_eq!(cri.status(&id).await.unwrap_err().code(), Code::NotFound);
    cri.stop_pod(&sandbox).await.unwrap();
    cri.stop_pod(&sandbox).await.unwrap();
    assert_eq!(
        cri.pod_status(&sandbox).await.unwrap().state(),
        v1::PodSandboxState::SandboxNotready
    );
    cri.remove_pod(&sandbox).await.unwrap();
    assert_eq!(cri.pod_status(&sandbox).await.unwrap_err().code(), Code::NotFound);
    machine.assert_clean().await;
    drop(daemon);
}

#[tokio::test]
async fn what_is_not_there_is_stopped_and_removed_with_success_and_not_found_otherwise() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    cri.stop_pod("none").await.unwrap();
    cri.remove_pod("none").await.unwrap();
    cri.stop("none", 1).await.unwrap();
    cri.remove("none").await.unwrap();
    cri.remove_image("none").await.unwrap();
    assert!(cri.image_status("none").await.unwrap().is_none());
    for code in [
        cri.status("none").await.unwrap_err().code(),
        cri.pod_status("none").await.unwrap_err().code(),
        cri.start("none").await.unwrap_err().code(),
        cri.exec("none", &["true"], 1).await.unwrap_err().code(),
        cri.create("none", container("c", "none", "true")).await.unwrap_err().code(),
    ] {
        assert_eq!(code, Code::NotFound);
    }
}

#[tokio::test]
async fn names_are_taken_and_a_second_container_of_a_name_is_refused() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let again = cri.run_pod(pod(&machine, "p")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(again.message().contains(&sandbox), "{again}");
    let id = cri.create(&sandbox, container("c", &image, "true")).await.unwrap();
    let again = cri.create(&sandbox, container("c", &image, "true")).await.unwrap_err();
    assert!(again.code() == Code::AlreadyExists && again.message().contains(&id), "{again}");
    // While a RunPodSandbox is under way, the same request joins it.
    let config = pod(&machine, "q");
    let (first, second) = tokio::join!(cri.run_pod(config.clone()), cri.run_pod(config));
    assert_eq!(first.unwrap(), second.unwrap());
    for sandbox in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&sandbox.id).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn lists_filter_by_everything_at_once() {
    let (machine, _daemon, cri, image) = ready().await;
    let (one, two) = (
        cri.run_pod(pod(&machine, "one")).await.unwrap(),
        cri.run_pod(pod(&machine, "two")).await.unwrap(),
    );
    cri.stop_pod(&two).await.unwrap();
    let label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    for (filter, expected) in [
        (v1::PodSandboxFilter::default(), 2),
        (v1::PodSandboxFilter { id: one[..13].to_owned(), ..Default::default() }, 1),
        (v1::PodSandboxFilter { label_selector: label("two"), ..Default::default() }, 1),
        (
            v1::PodSandboxFilter {
                state: state(v1::PodSandboxState::SandboxReady),
                ..Default::default()
            },
            1,
        ),
        (
            v1::PodSandboxFilter {
                state: state(v1::PodSandboxState::SandboxReady),
                label_selector: label("two"),
                ..Default::default()
            },
            0,
        ),
    ] {
        assert_eq!(cri.pods(filter.clone()).await.len(), expected, "{filter:?}");
    }
    let id = cri.run(&one, container("c", &image, "exec sleep 1000")).await.unwrap();
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
    for (filter, expected) in [
        (v1::ContainerFilter::default(), 1),
        (v1::ContainerFilter { id: id[..13].to_owned(), ..Default::default() }, 1),
        (v1::ContainerFilter { pod_sandbox_id: two, ..Default::default() }, 0),
        (
            v1::ContainerFilter {
                pod_sandbox_id: one.clone(),
                state: state(v1::ContainerState::ContainerRunning),
                ..Default::default()
            },
            1,
        ),
        (
            v1::ContainerFilter {
                pod_sandbox_id: one,
                state: state(v1::ContainerState::ContainerExited),
                ..Default::default()
            },
            0,
        ),
    ] {
        assert_eq!(cri.containers(filter.clone()).await.len(), expected, "{filter:?}");
    }
    // A unique prefix works wherever an id does.
    assert_eq!(cri.status(&id[..13]).await.unwrap().id, id);
}

#[tokio::test]
async fn pods_reach_each_other_and_the_host_reaches_pods() {
    let (machine, _daemon, cri, image) = ready().await;
    let server = cri.run_pod(pod(&machine, "server")).await.unwrap();
    let ip = cri.pod_status(&server).await.unwrap().network.unwrap().ip;
    cri.run(&server, container("c", &image, "while true; do echo served | nc -l -p 8080; done"))
        .await
        .unwrap();
    let client = cri.run_pod(pod(&machine, "client")).await.unwrap();
    let id = cri.run(&client, container("c", &image, "exec sleep 1000")).await.unwrap();
    eventually("an answer between pods", async || {
        let output = cri.exec(&id, &["nc", "-w", "2", &ip, "8080"], 5).await.unwrap();
        output.stdout == b"served\n"
    })
    .await;
    let mut from_host = String::new();
    eventually("an answer to the host", async || {
        from_host = machine.in_network(|| {
            let mut text = String::new();
            if let Ok(mut stream) = std::net::TcpStream::connect(format!("{ip}:8080")) {
                let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(2)));
                let _ = std::io::Read::read_to_string(&mut stream, &mut text);
            }
            text
        });
        from_host == "served\n"
    })
    .await;
    for sandbox in [server, client] {
        cri.remove_pod(&sandbox).await.unwrap();
    }
    machine.assert_clean().await;
}
