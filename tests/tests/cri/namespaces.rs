//! Which namespaces the containers of a pod share, with each other and with the host.

use std::fs;

use berth_proto::v1;
use berth_tests::{Config, container, eventually, pod, ready};

#[tokio::test]
async fn namespaces_are_shared_as_asked() {
    let (machine, _daemon, cri, image) = ready().await;
    // crictl's default: all namespaces are the pod's, the PID namespace included.
    let mut config = pod(&machine, "shared");
    config.linux.as_mut().unwrap().security_context = None;
    let shared = cri.run_pod(config).await.unwrap();
    let both = |name: &str| {
        let mut config = container(name, &image, "exec sleep 1000");
        config.linux = None;
        config
    };
    let (a, b) =
        (cri.run(&shared, both("a")).await.unwrap(), cri.run(&shared, both("b")).await.unwrap());
    let namespaces = "for n in pid net ipc uts; do readlink /proc/self/ns/$n; done";
    assert_eq!(cri.sh(&a, namespaces).await, cri.sh(&b, namespaces).await);
    assert_eq!(
        cri.sh(&a, "cat /proc/1/comm; ps -o args | grep -c '[s]leep 1000'").await,
        "pause\n2\n"
    );
    // The process that holds the PID namespace is killed, and with it the pod is not ready any
    // more.
    let pause = machine
        .shims()
        .into_iter()
        .find(|(_, command)| command.contains("/pause"))
        .expect("a pause shim")
        .0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pause), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    eventually("NotReady", async || {
        cri.pod_status(&shared).await.unwrap().state() == v1::PodSandboxState::SandboxNotready
    })
    .await;
    cri.remove_pod(&shared).await.unwrap();

    let mut config = pod(&machine, "host");
    let options = config.namespaces();
    options.network = v1::NamespaceMode::Node.into();
    options.ipc = v1::NamespaceMode::Node.into();
    config.hostname = String::new();
    let host = cri.run_pod(config).await.unwrap();
    assert_eq!(cri.pod_status(&host).await.unwrap().network.unwrap().ip, "");
    let mut config = container("c", &image, "exec sleep 1000");
    let options = config.namespaces();
    options.pid = v1::NamespaceMode::Node.into();
    let id = cri.run(&host, config).await.unwrap();
    let of_host = |name: &str| {
        fs::read_link(format!("/proc/{}/ns/{name}", machine.shims()[0].0))
            .unwrap()
            .display()
            .to_string()
    };
    for name in ["net", "ipc", "uts"] {
        assert_eq!(
            cri.sh(&id, &format!("readlink /proc/self/ns/{name}")).await.trim(),
            of_host(name),
            "{name}"
        );
    }
    cri.remove_pod(&host).await.unwrap();
    machine.assert_clean().await;
}
