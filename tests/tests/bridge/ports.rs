//! Ports of the host that lead to a pod: DNAT, conflicts, and a DEL that removes the pod's own
//! elements only.

use std::{
    io::{ErrorKind, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use berth_tests::{Capability, skip_without};
use serde_json::{Value, json};

use crate::host::{Host, ask, at};

#[test]
fn ports_of_the_host_lead_to_a_pod_from_everywhere() {
    if skip_without(Capability::Nat) {
        return;
    }
    let host = Host::new();
    // A client in another network, on the other side of the host.
    host.machine.output("ip", &["netns", "add", "outside"]);
    host.machine.output(
        "ip",
        &["link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", "outside"],
    );
    for (netns, link, address) in
        [(None, "out0", "192.0.2.1/24"), (Some("outside"), "eth0", "192.0.2.2/24")]
    {
        let prefix = netns.map_or(Vec::new(), |netns| vec!["-n", netns]);
        for command in [vec!["addr", "add", address, "dev", link], vec!["link", "set", link, "up"]]
        {
            host.machine.output("ip", &[prefix.clone(), command].concat());
        }
    }
    let before = host.rules();
    let mapped = host.with(json!({ "ipMasq": true, "runtimeConfig": { "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1" },
        { "hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0" },
        { "hostPort": 8083, "containerPort": 80, "protocol": "sctp" },
    ] } }));
    host.attach("one", &mapped);
    host.attach("two", &host.conf);
    host.serve("one", 80, "one");
    for address in [
        "127.0.0.1:8080",
        "10.88.0.1:8080",
        "[fd00:88::1]:8080",
        "192.0.2.1:8081",
        "127.0.0.1:8082",
    ] {
        assert_eq!(host.machine.in_network(|| ask(at(address))), "one", "{address} from the host");
    }
    for pod in ["one", "two", "outside"] {
        for address in ["192.0.2.1:8080", "192.0.2.1:8081", "192.0.2.1:8082"] {
            assert_eq!(
                host.machine.in_netns(pod, || ask(at(address))),
                "one",
                "{address} from {pod}"
            );
        }
    }
    for pod in ["one", "two"] {
        assert_eq!(
            host.machine.in_netns(pod, || ask(at("[fd00:88::1]:8080"))),
            "one",
            "IPv6 from {pod}"
        );
    }
    assert_eq!(
        host.machine.in_network(|| ask(at("127.0.0.1:8081"))),
        "",
        "a mapping of one address is of that one only"
    );
    // The kernel cannot pass it on; a client that tries ::1 before 127.0.0.1 must not have to wait.
    let refused = host.machine.in_network(|| TcpStream::connect("[::1]:8080").unwrap_err().kind());
    assert_eq!(refused, ErrorKind::ConnectionRefused);
    assert!(host.rules().contains("sctp . 8083"), "{}", host.rules());
    assert_eq!(host.call("CHECK", "one", &mapped), Ok(Value::Null));
    // This DEL gets neither the mappings nor the result of ADD.
    assert_eq!(host.call("DEL", "one", &host.conf), Ok(Value::Null));
    assert_eq!(host.machine.in_network(|| ask(at("127.0.0.1:8080"))), "");
    host.call("DEL", "two", &host.conf).unwrap();
    host.machine.output("ip", &["link", "delete", "out0"]);
    host.assert_empty();
    assert_eq!(before, "");
    let own: Vec<String> = host
        .rules()
        .lines()
        .filter(|line| line.contains("elements"))
        .map(|line| line.trim().to_owned())
        .collect();
    assert_eq!(own.len(), 4, "one element for each network, whatever pods came and went: {own:?}");
}

#[test]
fn a_flow_of_udp_goes_where_its_port_leads_now() {
    if skip_without(Capability::Nat) {
        return;
    }
    let host = Host::new();
    let mapped = host.with(json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": 5353, "containerPort": 53, "protocol": "udp" },
    ] } }));
    let client = host.machine.in_network(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.connect("127.0.0.1:5353").unwrap();
    for name in ["one", "two"] {
        // Sent while nobody has the port, so that connection tracking has an entry for the flow
        // that leads to the host.
        let _ = client.send(b"?");
        host.attach(name, &mapped);
        let server = host.machine.in_netns(name, || UdpSocket::bind("0.0.0.0:53").unwrap());
        let mut buffer = [0; 16];
        // The ICMP error for the first packet makes the next send(2) fail once.
        while client.send(b"?").is_err() {}
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (length, from) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|error| panic!("{name} heard nothing: {error}"));
        assert_eq!(&buffer[..length], b"?");
        server.send_to(name.as_bytes(), from).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], name.as_bytes());
        host.call("DEL", name, &mapped).unwrap();
    }
    host.assert_empty();
}

#[test]
fn nobody_outside_talks_to_what_listens_on_localhost() {
    if skip_without(Capability::Nat) {
        return;
    }
    // CVE-2020-8558: ports of the host need route_localnet on the bridge.
    let host = Host::new();
    host.attach(
        "one",
        &host.with(json!({
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] },
        })),
    );
    let route_localnet =
        host.machine.output("cat", &["/proc/sys/net/ipv4/conf/berth0/route_localnet"]);
    assert_eq!(route_localnet.trim(), "1");
    let listener = host.machine.in_network(|| TcpListener::bind("127.0.0.1:7000").unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"secret"));
        }
    });
    // With its own lo out of the way, the pod routes 127.0.0.0/8 to the host.
    host.machine.output("ip", &["-n", "one", "link", "set", "lo", "down"]);
    host.machine.output("ip", &["-n", "one", "addr", "flush", "dev", "lo"]);
    for (netns, sysctl) in
        [("one", "net.ipv4.conf.eth0.route_localnet"), ("one", "net.ipv4.conf.all.route_localnet")]
    {
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        host.machine
            .output("ip", &["netns", "exec", netns, "sh", "-c", &format!("echo 1 > {path}")]);
    }
    host.machine.output(
        "ip",
        &[
            "-n",
            "one",
            "route",
            "add",
            "127.0.0.0/8",
            "via",
            "10.88.0.1",
            "dev",
            "eth0",
            "src",
            "10.88.0.2",
        ],
    );
    let attack = || host.machine.in_netns("one", || ask(at("127.0.0.1:7000")));
    assert_eq!(attack(), "");
    // Without the rule the attack succeeds, which shows that the test tests something.
    host.machine.output("nft", &["flush", "chain", "inet", "berth", "loopback"]);
    assert_eq!(attack(), "secret");
}

#[test]
fn a_port_of_the_host_is_nobodys_twice() {
    if skip_without(Capability::Nat) {
        return;
    }
    let host = Host::new();
    let mapped = |port: u16| {
        host.with(json!({ "runtimeConfig": { "portMappings": [
            { "hostPort": 7777, "containerPort": 1, "protocol": "udp" },
            { "hostPort": port, "containerPort": 80 },
        ] } }))
    };
    host.attach(
        "first",
        &host.with(json!({
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] },
        })),
    );
    host.pod("second");
    let error = host.call("ADD", "second", &mapped(8080)).unwrap_err();
    assert_eq!(error["msg"], "port 8080/tcp of the host is mapped to container first already");
    // A program of the host has the port. One that listens on a loopback address only is not in the
    // way.
    let _program = host.machine.in_network(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let _local = host.machine.in_network(|| TcpListener::bind("127.0.0.53:9001").unwrap());
    let error = host.call("ADD", "second", &mapped(9000)).unwrap_err();
    assert_eq!(error["msg"], "port 9000/tcp of the host is in use by a program of the host");
    let left = host.rules();
    assert!(
        !left.contains("7777") && left.contains("first eth0 pods"),
        "all of a pod's ports or none: {left}"
    );
    host.call("ADD", "second", &mapped(9001)).unwrap();
    for name in ["first", "second"] {
        host.call("DEL", name, &host.conf).unwrap();
    }
    host.assert_empty();
}

/// Eight ports for a pod, counted from 20000.
fn eight_ports(pod: u16) -> Value {
    (0..8).map(|port| json!({ "hostPort": 20_000 + pod * 8 + port, "containerPort": 80 })).collect()
}

#[test]
fn pods_made_and_removed_at_once_leave_no_port_of_the_host() {
    if skip_without(Capability::Nat) {
        return;
    }
    const PODS: u16 = 150;
    const WORKERS: u16 = 8;
    let host = Host::new();
    let with_ports =
        |ports: Value| host.with(json!({ "runtimeConfig": { "portMappings": ports } }));
    let live = |worker: u16| {
        let netns = format!("worker{worker}");
        host.pod(&netns);
        let path = format!("/run/netns/{netns}");
        for pod in (worker..PODS).step_by(WORKERS.into()) {
            let id = format!("pod{pod}");
            let mut conf = with_ports(eight_ports(pod));
            conf["prevResult"] =
                host.call_with("ADD", &id, &conf.to_string(), &[("CNI_NETNS", &path)]).unwrap();
            // Some runtimes do not repeat in DEL what they said in ADD.
            if pod % 3 == 0 {
                conf = host.conf.clone();
            }
            host.call_with("DEL", &id, &conf.to_string(), &[("CNI_NETNS", &path)]).unwrap();
        }
    };
    thread::scope(|scope| (0..WORKERS).for_each(|worker| drop(scope.spawn(move || live(worker)))));
    host.assert_empty();
    // All of the ports are free again: one pod can have them all.
    let all = (0..PODS).flat_map(|pod| eight_ports(pod).as_array().unwrap().clone()).collect();
    host.attach("all", &with_ports(all));
    host.call("DEL", "all", &host.conf).unwrap();
    host.assert_empty();
}

/// The input of `nft -f` that adds or deletes ports of pods of another network.
fn others_ports(verb: &str, ports: std::ops::Range<u16>) -> String {
    let element = |port: u16| match verb {
        "add" => format!("tcp . {port} comment \"other eth0 others\" : 192.0.2.9 . 80"),
        _ => format!("tcp . {port}"),
    };
    let elements: Vec<String> = ports.map(element).collect();
    format!("{verb} element inet berth ports4 {{ {} }}\n", elements.join(", "))
}

#[test]
fn a_list_of_ports_that_changes_while_it_is_read_is_read_again() {
    if skip_without(Capability::Nat) {
        return;
    }
    let host = Host::new();
    let with_ports =
        |pod: u16| host.with(json!({ "runtimeConfig": { "portMappings": eight_ports(pod) } }));
    host.attach("first", &with_ports(0));
    let nft = |text: String| {
        let mut child =
            host.machine.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    nft(others_ports("add", 1000..3000));
    let stop = AtomicBool::new(false);
    let host = &host;
    let nft = &nft;
    thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            while !stop.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(30) {
                nft(others_ports("delete", 1000..1500));
                nft(others_ports("add", 1000..1500));
            }
        });
        for pod in 1..=60 {
            let id = format!("pod{pod}");
            host.attach(&id, &with_ports(pod));
            // Without its ports in the configuration, they have to be looked for among all
            // elements.
            host.call("DEL", &id, &host.conf).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(host.call("CHECK", "first", &with_ports(0)), Ok(Value::Null));
    host.call("DEL", "first", &host.conf).unwrap();
    assert!(!host.rules().contains("eth0 pods"), "{}", host.rules());
}

#[test]
fn a_del_takes_what_is_left_of_its_own_ports_and_nothing_of_another_pod() {
    if skip_without(Capability::Nat) {
        return;
    }
    let host = Host::new();
    let mapped = host.with(json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": 8080, "containerPort": 80 },
        { "hostPort": 8081, "containerPort": 81, "protocol": "udp" },
        { "hostPort": 8082, "containerPort": 82, "hostIP": "192.0.2.1" },
    ] } }));
    // Somebody else has removed one of the pod's elements.
    host.attach("first", &mapped);
    host.machine.output("nft", &["delete", "element", "inet", "berth", "ports4", "{ tcp . 8080 }"]);
    host.call("DEL", "first", &mapped).unwrap();
    host.assert_empty();
    // A DEL that is repeated when the ports belong to another pod already, with and without naming
    // the ports.
    host.attach("second", &mapped);
    let rules = host.rules();
    assert_eq!(rules.matches("second eth0 pods").count(), 5, "{rules}");
    for conf in
        [&mapped, &host.conf, &host.with(json!({ "runtimeConfig": { "portMappings": [] } }))]
    {
        host.call("DEL", "first", conf).unwrap();
        assert_eq!(host.rules(), rules);
    }
    host.call("DEL", "second", &mapped).unwrap();
    host.assert_empty();
}
