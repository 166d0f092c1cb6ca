//! Where the network comes from: the kubelet's pod network, a template, and a conf list of
//! upstream's plugins.

use std::{fs, path::Path};

use berth_proto::v1;
use berth_tests::{
    Capability, Cri, Machine, container, eventually, pod, ready, skip_without, upstream_network,
};
use serde_json::json;
use tonic::Code;

use crate::{ask, info, server, tcp};

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
    if skip_without(Capability::Nat) {
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
    // The kubelet sends it once, when it starts, so the daemon must remember it.
    daemon.kill();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let again = cri.run_pod(pod(&machine, "again")).await.unwrap();
    assert_eq!(addresses(&cri, &again).await, ["10.244.3.3", "fd00:3::3"]);
    for id in [before, after, again] {
        cri.remove_pod(&id).await.unwrap();
    }
}

/// What kube-proxy does for a Service with one endpoint.
const SERVICE: &str = "table ip service {
    chain before { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 dnat to POD; }
    chain after { type nat hook postrouting priority srcnat; ip saddr POD ip daddr POD masquerade; }
}";

#[tokio::test]
async fn a_pod_on_the_built_in_bridge_reaches_itself_through_its_service() {
    if skip_without(Capability::Nat) {
        return;
    }
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "endpoint")).await.unwrap();
    let script = "exec nc -ll -p 80 -e echo myself";
    let id = cri.run(&sandbox, container("server", &image, script)).await.unwrap();
    // Nodes set it, since the reply of another pod of the bridge would bypass the rules otherwise.
    // With it, the address is rewritten in the bridge, which then has to send the frame back
    // through the port that it came from.
    machine.in_network(|| {
        let _ = fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1");
    });
    let address = addresses(&cri, &sandbox).await.remove(0);
    fs::write(machine.path("service.nft"), SERVICE.replace("POD", &address)).unwrap();
    machine.output("nft", &["-f", machine.path("service.nft").to_str().unwrap()]);
    eventually("the server", async || {
        cri.sh(&id, "nc -w 2 127.0.0.1 80 </dev/null").await == "myself\n"
    })
    .await;
    assert_eq!(
        cri.sh(&id, "timeout 3 nc 10.96.0.1 80 </dev/null || echo nobody").await,
        "myself\n"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_template_is_filled_with_what_the_kubelet_tells() {
    let machine = Machine::new();
    let template = r#"{"cniVersion":"1.0.0","name":"berth","plugins":[{"type":"berth-bridge","isGateway":true,
        "ipam":{"type":"host-local","dataDir":"$DATA","ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":"{{$r}}"}]{{end}}],
        "routes":[{{range $i, $r := .Routes}}{{if $i}}, {{end}}{"dst":"{{$r}}"}{{end}}]}}]}"#;
    let template = template.replace("$DATA", &machine.path("state/ipam").display().to_string());
    fs::write(machine.path("template"), template).unwrap();
    // The configuration that `Machine` writes, and one key more.
    drop(machine.start().await);
    let config = fs::read_to_string(machine.path("config.toml")).unwrap();
    let key =
        format!("[cni]\nconf_template = {:?}\n", machine.path("template").display().to_string());
    fs::write(machine.path("config.toml"), config.replace("[cni]\n", &key)).unwrap();
    // The one that `Machine` writes where the kernel has no NAT.
    let _ = fs::remove_file(machine.path("net.d/10-without-nat.conflist"));

    let daemon = machine.start().await;
    let cri = daemon.cri();
    let refused = cri.run_pod(pod(&machine, "early")).await.unwrap_err();
    assert!(refused.message().contains("waits for the kubelet"), "{refused}");
    // A node that joins a cluster has this every time: no warning is due.
    assert!(!daemon.log().contains("garbage collection"), "{}", daemon.log());
    tell(&cri, "10.244.9.0/24,fd00:9::/64").await.unwrap();
    let id = cri.run_pod(pod(&machine, "filled")).await.unwrap();
    assert_eq!(addresses(&cri, &id).await, ["10.244.9.2", "fd00:9::2"]);
    cri.remove_pod(&id).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn drift_is_told_to_who_asks_and_a_namespace_that_vanished_holds_nothing_up() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let drifted = cri.run_pod(pod(&machine, "drifted")).await.unwrap();
    let vanished = cri.run_pod(pod(&machine, "vanished")).await.unwrap();
    let netns = async |id: &str| {
        info(&cri, id).await["netNamespace"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(info(&cri, &drifted).await["cniCheck"], "OK");
    machine.output("ip", &["-n", &netns(&drifted).await, "link", "set", "eth0", "down"]);
    machine.output("ip", &["netns", "delete", &netns(&vanished).await]);
    for (id, what) in [
        (&drifted, "eth0 is missing or down"),
        (&vanished, "network namespace /var/run/netns/cni-"),
    ] {
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
    let ipam = json!({
        "type": "host-local",
        "subnet": "10.91.0.0/24",
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": data(machine),
    });
    json!({
        "cniVersion": "0.4.0",
        "name": "ptp",
        "plugins": [{ "type": "ptp", "ipMasq": true, "ipam": ipam }],
    })
}

fn macvlan(machine: &Machine) -> serde_json::Value {
    machine.output("ip", &["link", "add", "wire", "type", "veth", "peer", "name", "other"]);
    for link in ["wire", "other"] {
        machine.output("ip", &["link", "set", link, "up"]);
    }
    machine.output("ip", &["addr", "add", "10.92.0.254/24", "dev", "other"]);
    let ipam = json!({ "type": "host-local", "subnet": "10.92.0.0/24", "dataDir": data(machine) });
    json!({
        "cniVersion": "1.0.0",
        "name": "macvlan",
        "plugins": [{ "type": "macvlan", "master": "wire", "ipam": ipam }],
    })
}

fn own_with_portmap(machine: &Machine) -> serde_json::Value {
    let ipam = json!({ "type": "host-local", "subnet": "10.93.0.0/24", "dataDir": data(machine) });
    json!({ "cniVersion": "1.0.0", "name": "mixed", "plugins": [
        { "type": "berth-bridge", "bridge": "mixed0", "isDefaultGateway": true,
            "hairpinMode": true, "ipMasq": true, "ipam": ipam },
        { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
        { "type": "loopback" },
    ] })
}

#[tokio::test]
async fn pods_run_on_the_networks_of_upstreams_plugins() {
    if skip_without(Capability::Nat) {
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
            let gateway =
                gateway.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
            for at in [format!("{gateway}:8080"), "127.0.0.1:8080".to_owned()] {
                assert_eq!(ask(&machine, &at), name, "{name} at {at}");
            }
        }
        let check = info(&cri, &id).await["cniCheck"].as_str().unwrap().to_owned();
        // Debian's version of portmap has a CHECK that looks for rules which its ADD never makes.
        assert!(check == "OK" || check.contains("portmap CHECK"), "{name}: {check}");
        daemon.kill();
        let daemon = machine.start().await;
        daemon.cri().remove_pod(&id).await.unwrap();
        let of_all = ["link cni0", "link mixed0", "link wire", "link other"];
        let left = || {
            machine
                .leftovers()
                .into_iter()
                .filter(|line| !of_all.contains(&line.as_str()) && !line.starts_with("nft"))
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
