//! Pods on real networks: ports of the host, the kubelet's pod network, upstream's plugins, and pods by the hundred.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::v1;
use berth_tests::{Cri, Machine, binary, container, eventually, in_guest, pod, ready, upstream_network};
use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tonic::Code;

/// The guest's kernel translates no addresses.
fn cannot_translate() -> bool {
    if in_guest() {
        eprintln!("skipped: this kernel has no NAT in nftables");
    }
    in_guest()
}

fn tcp(host_port: i32, container_port: i32) -> v1::PortMapping {
    v1::PortMapping { host_port, container_port, protocol: v1::Protocol::Tcp.into(), ..Default::default() }
}

fn with_ports(machine: &Machine, name: &str, ports: Vec<v1::PortMapping>) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig { port_mappings: ports, ..pod(machine, name) }
}

/// A pod with a container that answers every connection to its port 80 with its name.
async fn server(machine: &Machine, cri: &Cri, image: &str, name: &str, ports: Vec<v1::PortMapping>) -> String {
    let sandbox = cri.run_pod(with_ports(machine, name, ports)).await.unwrap();
    let script = format!("exec nc -ll -p 80 -e echo {name}");
    let id = cri.run(&sandbox, container("server", image, &script)).await.unwrap();
    eventually("the server", async || cri.sh(&id, "cat /proc/net/tcp /proc/net/tcp6").await.contains(":0050 ")).await;
    sandbox
}

/// What a server says; empty when there is none.
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

#[tokio::test]
async fn a_host_port_leads_to_its_pod_until_that_ends() {
    if cannot_translate() {
        return;
    }
    let (machine, daemon, cri, image) = ready().await;
    let unused = v1::PortMapping { host_port: 0, container_port: 81, ..Default::default() };
    let one = server(&machine, &cri, &image, "one", vec![tcp(8080, 80), unused]).await;
    assert_eq!(ask(&machine, "127.0.0.1:8080"), "one");
    assert_eq!(ask(&machine, "10.88.0.1:8080"), "one");
    // Another pod's, and a program's: the reason is told, and the sandbox undone.
    let refused = cri.run_pod(with_ports(&machine, "two", vec![tcp(8080, 80)])).await.unwrap_err();
    assert!(
        refused.message().contains(&format!("port 8080/tcp of the host is mapped to container {one}")),
        "{refused}"
    );
    let _program = machine.in_network(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let refused = cri.run_pod(with_ports(&machine, "two", vec![tcp(9000, 80)])).await.unwrap_err();
    assert!(refused.message().contains("port 9000/tcp of the host is in use by a program of the host"), "{refused}");
    let wrong = v1::PortMapping { host_ip: "localhost".to_owned(), ..tcp(9001, 80) };
    let refused = cri.run_pod(with_ports(&machine, "two", vec![wrong])).await.unwrap_err();
    assert!(refused.message().contains("\"localhost\" is not an address"), "{refused}");
    assert_eq!(fs::read_dir(machine.path("root/networks")).unwrap().count(), 1, "only of the first pod");
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
    if in_guest() {
        return eprintln!("skipped: this kernel has no token bucket filter");
    }
    let machine = Machine::new();
    let daemon = machine.start().await;
    let limits = [("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "20M")];
    let annotations = limits.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let id = daemon.cri().run_pod(v1::PodSandboxConfig { annotations, ..pod(&machine, "p") }).await.unwrap();
    let limits = machine.output("tc", &["qdisc"]);
    assert!(limits.contains("rate 10Mbit burst 1250000b") && limits.contains("rate 20Mbit burst 2500000b"), "{limits}");
    daemon.cri().remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}

/// UpdateRuntimeConfig.
async fn tell(cri: &Cri, pod_cidr: &str) -> Result<(), tonic::Status> {
    let network = v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() };
    let config = v1::RuntimeConfig { network_config: Some(network) };
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
    cri.runtime.clone().update_runtime_config(request).await.map(drop)
}

async fn addresses(cri: &Cri, id: &str) -> Vec<String> {
    let network = cri.pod_status(id).await.unwrap().network.unwrap();
    [vec![network.ip], network.additional_ips.into_iter().map(|ip| ip.ip).collect()].concat()
}

#[tokio::test]
async fn the_pods_network_that_the_kubelet_tells_is_that_of_the_built_in_bridge() {
    if cannot_translate() {
        return;
    }
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    assert_eq!(tell(&cri, "10.244.0.0").await.unwrap_err().code(), Code::InvalidArgument);
    let before = cri.run_pod(pod(&machine, "before")).await.unwrap();
    assert_eq!(addresses(&cri, &before).await, ["10.88.0.2"]);
    tell(&cri, "10.244.3.0/24,fd00:3::/64").await.unwrap();
    let after = cri.run_pod(pod(&machine, "after")).await.unwrap();
    assert_eq!(addresses(&cri, &after).await, ["10.244.3.2", "fd00:3::2"]);
    // The kubelet tells it once.
    daemon.kill();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let again = cri.run_pod(pod(&machine, "again")).await.unwrap();
    assert_eq!(addresses(&cri, &again).await, ["10.244.3.3", "fd00:3::3"]);
    for id in [before, after, again] {
        cri.remove_pod(&id).await.unwrap();
    }
}

#[tokio::test]
async fn a_template_is_filled_with_what_the_kubelet_tells() {
    let machine = Machine::new();
    let template = r#"{"cniVersion":"1.0.0","name":"berth","plugins":[{"type":"berth-bridge","isGateway":true,
        "ipam":{"type":"host-local","dataDir":"$DATA","ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":"{{$r}}"}]{{end}}],
        "routes":[{{range $i, $r := .Routes}}{{if $i}}, {{end}}{"dst":"{{$r}}"}{{end}}]}}]}"#;
    let template = template.replace("$DATA", &machine.path("state/ipam").display().to_string());
    fs::write(machine.path("template"), template).unwrap();
    // The harness's configuration, and one key more.
    drop(machine.start().await);
    let config = fs::read_to_string(machine.path("config.toml")).unwrap();
    let key = format!("[cni]\nconf_template = {:?}\n", machine.path("template").display().to_string());
    fs::write(machine.path("config.toml"), config.replace("[cni]\n", &key)).unwrap();
    // Of the guest's own.
    let _ = fs::remove_file(machine.path("net.d/10-guest.conflist"));

    let daemon = machine.start().await;
    let cri = daemon.cri();
    let refused = cri.run_pod(pod(&machine, "early")).await.unwrap_err();
    assert!(refused.message().contains("waits for the kubelet"), "{refused}");
    tell(&cri, "10.244.9.0/24,fd00:9::/64").await.unwrap();
    let id = cri.run_pod(pod(&machine, "filled")).await.unwrap();
    assert_eq!(addresses(&cri, &id).await, ["10.244.9.2", "fd00:9::2"]);
    cri.remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}

/// Of the verbose status.
async fn info(cri: &Cri, id: &str) -> serde_json::Value {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let status = cri.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    serde_json::from_str(&status.info["info"]).unwrap()
}

#[tokio::test]
async fn drift_is_told_to_who_asks_and_a_namespace_that_vanished_holds_nothing_up() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let drifted = cri.run_pod(pod(&machine, "drifted")).await.unwrap();
    let vanished = cri.run_pod(pod(&machine, "vanished")).await.unwrap();
    let netns =
        async |id: &str| info(&cri, id).await["netNamespace"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    assert_eq!(info(&cri, &drifted).await["cniCheck"], "OK");
    machine.output("ip", &["-n", &netns(&drifted).await, "link", "set", "eth0", "down"]);
    machine.output("ip", &["netns", "delete", &netns(&vanished).await]);
    for (id, what) in [(&drifted, "eth0 is missing or down"), (&vanished, "network namespace /var/run/netns/cni-")] {
        let told = info(&cri, id).await["cniCheck"].as_str().unwrap().to_owned();
        assert!(told.contains(what), "{told}");
    }
    for id in [drifted, vanished] {
        cri.remove_pod(&id).await.unwrap();
    }
    machine.assert_clean().await;
}

type Network = fn(&Machine) -> serde_json::Value;

fn data(machine: &Machine) -> String {
    machine.path("host-local").display().to_string()
}

fn ptp(machine: &Machine) -> serde_json::Value {
    let ipam = json!({ "type": "host-local", "subnet": "10.91.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }], "dataDir": data(machine) });
    json!({ "cniVersion": "0.4.0", "name": "ptp", "plugins": [{ "type": "ptp", "ipMasq": true, "ipam": ipam }] })
}

fn macvlan(machine: &Machine) -> serde_json::Value {
    machine.output("ip", &["link", "add", "wire", "type", "veth", "peer", "name", "other"]);
    for link in ["wire", "other"] {
        machine.output("ip", &["link", "set", link, "up"]);
    }
    machine.output("ip", &["addr", "add", "10.92.0.254/24", "dev", "other"]);
    let ipam = json!({ "type": "host-local", "subnet": "10.92.0.0/24", "dataDir": data(machine) });
    json!({ "cniVersion": "1.0.0", "name": "macvlan", "plugins": [{ "type": "macvlan", "master": "wire", "ipam": ipam }] })
}

fn own_with_portmap(machine: &Machine) -> serde_json::Value {
    let ipam = json!({ "type": "host-local", "subnet": "10.93.0.0/24", "dataDir": data(machine) });
    json!({ "cniVersion": "1.0.0", "name": "mixed", "plugins": [
        { "type": "berth-bridge", "bridge": "mixed0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": true, "ipam": ipam },
        { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
        { "type": "loopback" },
    ] })
}

#[tokio::test]
async fn pods_run_on_the_networks_of_upstreams_plugins() {
    if cannot_translate() {
        return;
    }
    if !Path::new("/usr/lib/cni/bridge").exists() {
        panic!("Debian's containernetworking-plugins is not installed: hack/test does it");
    }
    let networks: [(&str, Network, bool); 4] = [
        ("chain", upstream_network, true),
        ("ptp", ptp, false),
        ("macvlan", macvlan, false),
        ("mixed", own_with_portmap, true),
    ];
    for (name, network, maps_ports) in networks {
        let machine = Machine::new();
        machine.write_network(&network(&machine));
        let daemon = machine.start().await;
        let cri = daemon.cri();
        let image = cri.pull_image(&machine, berth_tests::Image::busybox()).await;
        let ports = if maps_ports { vec![tcp(8080, 80)] } else { Vec::new() };
        let id = server(&machine, &cri, &image, name, ports).await;
        let address = cri.pod_status(&id).await.unwrap().network.unwrap().ip;
        assert_eq!(ask(&machine, &format!("{address}:80")), name, "{name} at {address}");
        if maps_ports {
            let gateway = machine.output("ip", &["-o", "-4", "addr", "show", "scope", "global"]);
            let gateway = gateway.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
            for at in [format!("{gateway}:8080"), "127.0.0.1:8080".to_owned()] {
                assert_eq!(ask(&machine, &at), name, "{name} at {at}");
            }
        }
        let check = info(&cri, &id).await["cniCheck"].as_str().unwrap().to_owned();
        // portmap of this version looks for rules that it never makes.
        assert!(check == "OK" || check.contains("portmap CHECK"), "{name}: {check}");
        daemon.kill();
        let daemon = machine.start().await;
        daemon.cri().remove_pod(&id).await.unwrap();
        let of_all = ["link cni0", "link mixed0", "link wire", "link other"];
        let left = || {
            machine.leftovers().into_iter().filter(|line| !of_all.contains(&line.as_str()) && !line.starts_with("nft"))
        };
        eventually(&format!("nothing left of {name}"), async || left().next().is_none()).await;
        let held = fs::read_dir(machine.path("host-local")).into_iter().flatten().flatten();
        let held: Vec<String> = held
            .flat_map(|network| fs::read_dir(network.path()).unwrap().flatten())
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok() || name.contains('@'))
            .collect();
        assert_eq!(held, Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn five_hundred_pods_have_five_hundred_addresses_and_leave_none() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let mut ids = Vec::new();
    for batch in 0..25 {
        let runs = (0..20).map(|number| {
            let number = batch * 20 + number;
            // Every fifth has a port of the host.
            let ports = if number % 5 == 0 && !in_guest() { vec![tcp(20000 + number, 80)] } else { Vec::new() };
            cri.run_pod(with_ports(&machine, &format!("pod{number}"), ports))
        });
        ids.extend(join_all(runs).await.into_iter().map(Result::unwrap));
    }
    let mut addresses = BTreeSet::new();
    for id in &ids {
        addresses.insert(cri.pod_status(id).await.unwrap().network.unwrap().ip);
    }
    assert_eq!(addresses.len(), 500);
    for batch in ids.chunks(20) {
        join_all(batch.iter().map(|id| cri.remove_pod(id))).await.into_iter().for_each(Result::unwrap);
    }
    machine.assert_clean().await;
}

/// Kills a running berth-bridge of this machine now and then.
fn assassin(machine: &Machine, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u32> {
    let own = machine.dir.path().display().to_string();
    let program = binary("berth-bridge").canonicalize().unwrap();
    std::thread::spawn(move || {
        let (mut killed, mut seen) = (0, 0_u32);
        while !stop.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let is_one = fs::read_link(entry.path().join("exe")).is_ok_and(|path| path == program)
                    && fs::read(entry.path().join("environ"))
                        .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&own));
                if !is_one {
                    continue;
                }
                seen += 1;
                if seen.is_multiple_of(3) {
                    let pid: i32 = entry.file_name().to_string_lossy().parse().unwrap();
                    killed += u32::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
                }
            }
        }
        killed
    })
}

#[tokio::test]
async fn pods_whose_daemon_and_plugins_are_killed_at_any_moment_leave_nothing() {
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    let rules = || if in_guest() { String::new() } else { machine.output("nft", &["list", "ruleset"]) };
    let ports = |number: i32| if in_guest() { Vec::new() } else { vec![tcp(20000 + number, 80)] };
    // The table and the bridge are there from the first pod on.
    let first = daemon.cri().run_pod(with_ports(&machine, "first", ports(0))).await.unwrap();
    daemon.cri().remove_pod(&first).await.unwrap();
    let before = rules();
    let stop = Arc::new(AtomicBool::new(false));
    let assassin = assassin(&machine, stop.clone());
    for round in 0..30 {
        let cri = daemon.cri();
        let lives: Vec<_> = (0..10)
            .map(|number| {
                let number = round * 10 + number;
                let (cri, config) = (cri.clone(), with_ports(&machine, &format!("pod{number}"), ports(number + 1)));
                tokio::spawn(async move {
                    let id = cri.run_pod(config).await?;
                    cri.remove_pod(&id).await
                })
            })
            .collect();
        // Ten lives take some 300 ms.
        tokio::time::sleep(Duration::from_millis((round as u64 * 37) % 300)).await;
        daemon.kill();
        for life in lives {
            let _ = life.await.unwrap();
        }
        daemon = machine.start().await;
    }
    stop.store(true, Ordering::Relaxed);
    let killed = assassin.join().unwrap();
    assert!(killed > 20, "only {killed} plugins were killed");
    daemon.kill();
    let daemon = machine.start().await;
    for sandbox in daemon.cri().pods(v1::PodSandboxFilter::default()).await {
        daemon.cri().remove_pod(&sandbox.id).await.unwrap();
    }
    eventually("every DEL", async || fs::read_dir(machine.path("root/networks")).unwrap().next().is_none()).await;
    machine.assert_clean().await;
    assert_eq!(rules(), before);
}
