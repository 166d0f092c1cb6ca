//! Streams: the throughput of an exec's output, and the cost of a forwarded connection.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use anyhow::Result;
use berth_proto::v1;
use berth_tests::{Cri, Machine, SpdyClient, container, pod};

use super::Findings;
use crate::{
    report::{Key, Part, Unit},
    rig::{Rig, Target, create},
};

/// Bytes of one command's output and of one connection.
const BYTES: u64 = 1 << 30;
const TURNS: usize = 3;
const CONNECTIONS: usize = 50;

/// A pod whose container listens on two ports: one that sends all bytes, and one that says hello.
struct Server<'a> {
    target: &'a Target,
    sandbox: String,
    container: String,
}

pub(super) async fn measure(rig: &Rig, findings: &mut Findings) -> Result<()> {
    let mut servers = Vec::new();
    for target in &rig.targets {
        servers.push(serve(rig, target).await?);
    }
    let speed = |name| Key::new(Part::Streaming, name, Unit::MegabytesPerSecond);
    for _ in 0..TURNS {
        for server in &servers {
            let exec = exec(server, &rig.machine).await?;
            findings.samples.add(&speed("output of an exec"), server.target.name, exec);
            let port = whole(server, &rig.machine).await?;
            findings.samples.add(&speed("forwarded port"), server.target.name, port);
        }
    }
    let key = Key::new(Part::Streaming, "connection to a forwarded port", Unit::Milliseconds);
    for server in servers {
        for time in connections(&server, &rig.machine).await? {
            findings.samples.add_time(&key, server.target.name, time);
        }
        server.target.cri.stop_pod(&server.sandbox).await?;
        server.target.cri.remove_pod(&server.sandbox).await?;
    }
    Ok(())
}

/// A command that is faster than what is measured.
fn source() -> [String; 4] {
    let count = format!("count={}", BYTES >> 20);
    ["dd", "if=/dev/zero", "bs=1M", &count].map(str::to_owned)
}

async fn serve<'a>(rig: &Rig, target: &'a Target) -> Result<Server<'a>> {
    let config = pod(&rig.machine, &format!("streams-{}", target.name));
    let sandbox = target.cri.run_pod(config.clone()).await?;
    let source = source().join(" ");
    let script = format!("nc -ll -p 80 -e {source} & exec nc -ll -p 81 -e echo hello");
    let container = container("c", &rig.image, &script);
    let container = create(&target.cri, &sandbox, &config, container).await?;
    target.cri.start(&container).await?;
    Ok(Server { target, sandbox, container })
}

async fn exec(server: &Server<'_>, machine: &Machine) -> Result<f64> {
    let request = v1::ExecRequest {
        container_id: server.container.clone(),
        cmd: source().to_vec(),
        stdout: true,
        ..Default::default()
    };
    let url = server.target.cri.runtime.clone().exec(request).await?.into_inner().url;
    Ok(machine.in_network(|| rate(&mut SpdyClient::open_all(&url, &["error", "stdout"]))))
}

/// All bytes through one forwarded connection.
async fn whole(server: &Server<'_>, machine: &Machine) -> Result<f64> {
    let url = forward(&server.target.cri, &server.sandbox).await?;
    Ok(machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
        pair(&mut client, "80", "1");
        rate(&mut client)
    }))
}

/// From the request for a forwarded connection to the first bytes that come through it.
async fn connections(server: &Server<'_>, machine: &Machine) -> Result<Vec<Duration>> {
    let url = forward(&server.target.cri, &server.sandbox).await?;
    Ok(machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
        let mut times = Vec::new();
        for number in 0..CONNECTIONS {
            let begun = Instant::now();
            let data = pair(&mut client, "81", &number.to_string());
            let _ = client.read_until(|client| client.text(data).contains("hello"));
            times.push(begun.elapsed());
        }
        times
    }))
}

async fn forward(cri: &Cri, sandbox: &str) -> Result<String> {
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![80, 81] };
    Ok(cri.runtime.clone().port_forward(request).await?.into_inner().url)
}

/// Opens a forwarded connection; returns the number of its data stream.
fn pair(client: &mut SpdyClient, port: &str, request: &str) -> u32 {
    let headers = |kind| [("port", port), ("requestid", request), ("streamtype", kind)];
    client.open(&headers("error"));
    client.open(&headers("data"))
}

/// Reads until as many bytes have come; returns megabytes a second.
fn rate(client: &mut SpdyClient) -> f64 {
    let _ = client.socket.set_read_timeout(Some(Duration::from_secs(60)));
    let begun = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut count = 0;
    while count < BYTES {
        match client.socket.read(&mut buffer) {
            Ok(length) if length > 0 => count += length as u64,
            _ => return f64::NAN,
        }
    }
    count as f64 / 1e6 / begun.elapsed().as_secs_f64()
}
