//! The network of pods as the daemon makes it: with berth-bridge, with upstream's plugins, and with
//! plugins that misbehave.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod configured;
mod plugins;
mod pods;
mod ports;

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use berth_proto::v1;
use berth_tests::{Cri, Machine, container, eventually, pod};

fn tcp(host_port: i32, container_port: i32) -> v1::PortMapping {
    v1::PortMapping {
        host_port,
        container_port,
        protocol: v1::Protocol::Tcp.into(),
        ..Default::default()
    }
}

fn with_ports(machine: &Machine, name: &str, ports: Vec<v1::PortMapping>) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig { port_mappings: ports, ..pod(machine, name) }
}

/// Runs a pod whose container answers every connection to its port 80 with its name.
async fn server(
    machine: &Machine,
    cri: &Cri,
    image: &str,
    name: &str,
    ports: Vec<v1::PortMapping>,
) -> String {
    let sandbox = cri.run_pod(with_ports(machine, name, ports)).await.unwrap();
    let script = format!("exec nc -ll -p 80 -e echo {name}");
    let id = cri.run(&sandbox, container("server", image, &script)).await.unwrap();
    eventually("the server", async || {
        cri.sh(&id, "cat /proc/net/tcp /proc/net/tcp6").await.contains(":0050 ")
    })
    .await;
    sandbox
}

/// What a server says; empty when nobody answers.
fn ask(machine: &Machine, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    machine.in_network(|| {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let _ = stream.read_to_string(&mut answer);
        }
        answer.trim().to_owned()
    })
}

/// The entry `info` of a verbose PodSandboxStatus.
async fn info(cri: &Cri, id: &str) -> serde_json::Value {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let status = cri.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    serde_json::from_str(&status.info["info"]).unwrap()
}
