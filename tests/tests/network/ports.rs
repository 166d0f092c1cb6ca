//! Ports of the host and bandwidth of pods, as the kubelet asks for them.

use std::{fs, net::TcpListener};

use berth_proto::v1;
use berth_tests::{Capability, Machine, pod, ready, skip_without};

use crate::{ask, info, server, tcp, with_ports};

#[tokio::test]
async fn a_host_port_leads_to_its_pod_until_that_ends() {
    if skip_without(Capability::Nat) {
        return;
    }
    let (machine, daemon, cri, image) = ready().await;
    let unused = v1::PortMapping { host_port: 0, container_port: 81, ..Default::default() };
    let one = server(&machine, &cri, &image, "one", vec![tcp(8080, 80), unused]).await;
    assert_eq!(ask(&machine, "127.0.0.1:8080"), "one");
    assert_eq!(ask(&machine, "10.88.0.1:8080"), "one");
    // A port of another pod, and one of a program: the error says whose it is, and the sandbox is
    // undone.
    let refused = cri.run_pod(with_ports(&machine, "two", vec![tcp(8080, 80)])).await.unwrap_err();
    assert!(
        refused
            .message()
            .contains(&format!("port 8080/tcp of the host is mapped to container {one}")),
        "{refused}"
    );
    let _program = machine.in_network(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let refused = cri.run_pod(with_ports(&machine, "two", vec![tcp(9000, 80)])).await.unwrap_err();
    assert!(
        refused.message().contains("port 9000/tcp of the host is in use by a program of the host"),
        "{refused}"
    );
    let wrong = v1::PortMapping { host_ip: "localhost".to_owned(), ..tcp(9001, 80) };
    let refused = cri.run_pod(with_ports(&machine, "two", vec![wrong])).await.unwrap_err();
    assert!(refused.message().contains("\"localhost\" is not an address"), "{refused}");
    assert_eq!(
        fs::read_dir(machine.path("root/networks")).unwrap().count(),
        1,
        "only of the first pod"
    );
    // A restart changes nothing.
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(info(&daemon.cri(), &one).await["cniCheck"], "OK");
    assert_eq!(ask(&machine, "127.0.0.1:8080"), "one");
    daemon.cri().stop_pod(&one).await.unwrap();
    assert_eq!(ask(&machine, "127.0.0.1:8080"), "");
    let two = server(&machine, &daemon.cri(), &image, "two", vec![tcp(8080, 80)]).await;
    assert_eq!(ask(&machine, "127.0.0.1:8080"), "two");
    for id in [one, two] {
        daemon.cri().remove_pod(&id).await.unwrap();
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn annotations_limit_the_bandwidth_of_a_pod() {
    if skip_without(Capability::TokenBucket) {
        return;
    }
    let machine = Machine::new();
    let daemon = machine.start().await;
    let limits =
        [("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "20M")];
    let annotations = limits.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let id = daemon
        .cri()
        .run_pod(v1::PodSandboxConfig { annotations, ..pod(&machine, "p") })
        .await
        .unwrap();
    let limits = machine.output("tc", &["qdisc"]);
    assert!(
        limits.contains("rate 10Mbit burst 1250000b")
            && limits.contains("rate 20Mbit burst 2500000b"),
        "{limits}"
    );
    daemon.cri().remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}
