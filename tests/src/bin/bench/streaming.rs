//! Streams: how much an exec says in a second, and what a forwarded connection costs.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Cri, Machine, SpdyClient, container, pod};

use crate::{Outcome, Target, create, median};

/// Of one command's output, and of one connection.
const BYTES: u64 = 1 << 30;
const CONNECTIONS: usize = 50;

/// Lines for people.
pub(crate) async fn compare(machine: &Machine, targets: &[Target], image: &str) -> Outcome<Vec<String>> {
    let mut lines = vec!["\nstreams over SPDY".to_owned()];
    for target in targets {
        let cri = &target.cri;
        let config = pod(machine, &format!("streams-{}", target.name));
        let sandbox = cri.run_pod(config.clone()).await?;
        // A source that is faster than its way.
        let source = ["dd".to_owned(), "if=/dev/zero".to_owned(), "bs=1M".to_owned(), format!("count={}", BYTES >> 20)];
        let script = format!("nc -ll -p 80 -e {} & exec nc -ll -p 81 -e echo hello", source.join(" "));
        let id = create(cri, &sandbox, &config, container("c", image, &script)).await?;
        cri.start(&id).await?;
        let mut exec = Vec::new();
        for _ in 0..3 {
            let request =
                v1::ExecRequest { container_id: id.clone(), cmd: source.to_vec(), stdout: true, ..Default::default() };
            let url = cri.runtime.clone().exec(request).await?.into_inner().url;
            exec.push(machine.in_network(|| rate(&mut SpdyClient::open_all(&url, &["error", "stdout"]))));
        }
        let url = forward(cri, &sandbox).await?;
        let whole = machine.in_network(|| {
            let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
            pair(&mut client, "80", "1");
            rate(&mut client)
        });
        let url = forward(cri, &sandbox).await?;
        let latencies = machine.in_network(|| {
            let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
            let mut latencies = Vec::new();
            for number in 0..CONNECTIONS {
                let begun = Instant::now();
                let data = pair(&mut client, "81", &number.to_string());
                let _ = client.read_until(|client| client.text(data).contains("hello"));
                latencies.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            latencies
        });
        lines.push(format!(
            "  {:<12} exec {:.0} MB/s, forwarded port {whole:.0} MB/s, a connection through it {:.2} ms",
            target.name,
            median(&exec),
            median(&latencies)
        ));
        cri.stop_pod(&sandbox).await?;
        cri.remove_pod(&sandbox).await?;
    }
    Ok(lines)
}

async fn forward(cri: &Cri, sandbox: &str) -> Outcome<String> {
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![80, 81] };
    Ok(cri.runtime.clone().port_forward(request).await?.into_inner().url)
}

/// Opens a connection: the number of its data stream.
fn pair(client: &mut SpdyClient, port: &str, request: &str) -> u32 {
    let headers = |kind| [("port", port), ("requestid", request), ("streamtype", kind)];
    client.open(&headers("error"));
    client.open(&headers("data"))
}

/// MB a second, until as much has come.
fn rate(client: &mut SpdyClient) -> f64 {
    let _ = client.socket.set_read_timeout(Some(Duration::from_secs(60)));
    let begun = Instant::now();
    let (mut buffer, mut count) = (vec![0; 256 << 10], 0);
    while count < BYTES {
        match client.socket.read(&mut buffer) {
            Ok(length) if length > 0 => count += length as u64,
            _ => return f64::NAN,
        }
    }
    count as f64 / 1e6 / begun.elapsed().as_secs_f64()
}
