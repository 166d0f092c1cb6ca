//! berth-bridge alone, called as any CNI runtime calls a plugin, in a network namespace that stands for the host.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use berth_tests::{Machine, binary, in_guest};
use serde_json::{Value, json};

const V4: &str = "10.88.0.0/16";
const V6: &str = "fd00:88::/64";

/// A host on which pods are attached.
struct Host {
    machine: Machine,
    conf: Value,
}

impl Host {
    fn new() -> Self {
        let machine = Machine::new();
        let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": V4 }], [{ "subnet": V6 }]], "dataDir": machine.path("ipam") });
        let conf = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "berth-bridge", "isDefaultGateway": true, "ipam": ipam,
        });
        Self { machine, conf }
    }

    /// The configuration with more keys.
    fn with(&self, more: Value) -> Value {
        let mut conf = self.conf.clone();
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// A pod's namespace, by the name of the pod.
    fn pod(&self, name: &str) {
        self.machine.output("ip", &["netns", "add", name]);
        self.machine.output("ip", &["-n", name, "link", "set", "lo", "up"]);
    }

    fn call(&self, command: &str, id: &str, conf: &Value) -> Result<Value, Value> {
        self.call_with(command, id, &conf.to_string(), &[])
    }

    fn call_with(&self, command: &str, id: &str, stdin: &str, environment: &[(&str, &str)]) -> Result<Value, Value> {
        let mut child = self
            .machine
            .command(binary("berth-bridge"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", format!("/run/netns/{id}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let answer = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        if output.status.success() { Ok(answer) } else { Err(answer) }
    }

    /// A pod with its namespace, attached; its addresses.
    fn attach(&self, name: &str, conf: &Value) -> Vec<IpAddr> {
        self.pod(name);
        let result = self.call("ADD", name, conf).unwrap();
        let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
        result["ips"].as_array().unwrap().iter().map(address).collect()
    }

    /// A server in a pod that answers each connection with `says`.
    fn serve(&self, pod: &str, port: u16, says: &'static str) {
        let listener = self.machine.in_netns(pod, || TcpListener::bind(("::", port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(says.as_bytes()));
            }
        });
    }

    fn rules(&self) -> String {
        self.machine.output("nft", &["list", "ruleset"])
    }

    fn links(&self) -> Vec<String> {
        let text = self.machine.output("ip", &["-o", "link"]);
        let name = |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        text.lines().map(name).filter(|name| !["lo", "berth0"].contains(&name.as_str())).collect()
    }

    fn reserved(&self) -> Vec<String> {
        let entries = fs::read_dir(self.machine.path("ipam/pods")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| !["lock", "boot"].contains(&name.as_str()) && !name.starts_with("last_")).collect()
    }

    /// Nothing is left of any pod: no link, address or element.
    fn assert_empty(&self) {
        assert_eq!((self.links(), self.reserved()), (Vec::new(), Vec::new()));
        if !in_guest() {
            assert!(!self.rules().contains("comment"), "{}", self.rules());
        }
    }
}

/// What a server at `address` says; empty when there is none, or none that answers soon.
fn ask(address: impl Into<SocketAddr>) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect_timeout(&address.into(), Duration::from_millis(800)) {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// The guest's kernel translates no addresses.
fn cannot_translate() -> bool {
    if in_guest() {
        eprintln!("skipped: this kernel has no NAT in nftables");
    }
    in_guest()
}

#[test]
fn pods_have_addresses_of_both_families_and_reach_one_another_and_the_host() {
    let host = Host::new();
    let one = host.attach("one", &host.conf);
    let two = host.attach("two", &host.conf);
    assert_eq!(format!("{one:?} {two:?}"), "[10.88.0.2, fd00:88::2] [10.88.0.3, fd00:88::3]");
    host.serve("one", 80, "one");
    for address in one {
        assert_eq!(host.machine.in_netns("two", || ask((address, 80))), "one", "{address}");
        assert_eq!(host.machine.in_network(|| ask((address, 80))), "one", "{address} from the host");
    }
    assert_eq!(host.call("CHECK", "one", &host.conf), Ok(Value::Null));
    assert_eq!(host.call("STATUS", "one", &host.conf), Ok(Value::Null));
    // With and without the namespace, once and again.
    assert_eq!(host.call("DEL", "one", &host.conf), Ok(Value::Null));
    for _ in 0..2 {
        assert_eq!(host.call_with("DEL", "two", &host.conf.to_string(), &[("CNI_NETNS", "")]), Ok(Value::Null));
    }
    host.assert_empty();
    // The next pod gets the next address, and not one that was just freed.
    assert_eq!(host.attach("three", &host.conf)[0].to_string(), "10.88.0.4");
}

#[test]
fn results_have_the_form_of_the_version_that_was_asked_for() {
    let host = Host::new();
    host.pod("one");
    let mac = "0a:58:0a:58:00:02";
    let result =
        host.call("ADD", "one", &host.with(json!({ "mtu": 1400, "dns": { "nameservers": ["10.0.0.10"] } }))).unwrap();
    let inside = &result["interfaces"][2];
    assert_eq!(*inside, json!({ "name": "eth0", "mac": mac, "mtu": 1400, "sandbox": "/run/netns/one" }));
    assert_eq!(result["interfaces"][0]["name"], "berth0");
    assert_eq!(result["ips"][0], json!({ "address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 2 }));
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "10.88.0.1" }, { "dst": "::/0", "gw": "fd00:88::1" }])
    );
    assert_eq!(result["dns"], json!({ "nameservers": ["10.0.0.10"] }));
    host.pod("two");
    let old = host.call("ADD", "two", &host.with(json!({ "cniVersion": "0.3.1" }))).unwrap();
    assert_eq!((&old["cniVersion"], &old["ips"][1]["version"]), (&json!("0.3.1"), &json!("6")));
    let refused = host.call("ADD", "two", &host.with(json!({ "cniVersion": "0.2.0" }))).unwrap_err();
    assert_eq!(refused["code"], 1);
}

#[test]
fn ports_of_the_host_lead_to_a_pod_from_everywhere() {
    if cannot_translate() {
        return;
    }
    let host = Host::new();
    // Somebody in another network, behind the host.
    host.machine.output("ip", &["netns", "add", "outside"]);
    host.machine.output("ip", &["link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", "outside"]);
    for (netns, link, address) in [(None, "out0", "192.0.2.1/24"), (Some("outside"), "eth0", "192.0.2.2/24")] {
        let prefix = netns.map_or(Vec::new(), |netns| vec!["-n", netns]);
        for command in [vec!["addr", "add", address, "dev", link], vec!["link", "set", link, "up"]] {
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
    for address in ["127.0.0.1:8080", "10.88.0.1:8080", "[fd00:88::1]:8080", "192.0.2.1:8081", "127.0.0.1:8082"] {
        assert_eq!(host.machine.in_network(|| ask(at(address))), "one", "{address} from the host");
    }
    for pod in ["one", "two", "outside"] {
        for address in ["192.0.2.1:8080", "192.0.2.1:8081", "192.0.2.1:8082"] {
            assert_eq!(host.machine.in_netns(pod, || ask(at(address))), "one", "{address} from {pod}");
        }
    }
    for pod in ["one", "two"] {
        assert_eq!(host.machine.in_netns(pod, || ask(at("[fd00:88::1]:8080"))), "one", "IPv6 from {pod}");
    }
    assert_eq!(
        host.machine.in_network(|| ask(at("127.0.0.1:8081"))),
        "",
        "a mapping of one address is of that one only"
    );
    assert!(host.rules().contains("sctp . 8083"), "{}", host.rules());
    assert_eq!(host.call("CHECK", "one", &mapped), Ok(Value::Null));
    // DEL knows neither the mappings nor the result.
    assert_eq!(host.call("DEL", "one", &host.conf), Ok(Value::Null));
    assert_eq!(host.machine.in_network(|| ask(at("127.0.0.1:8080"))), "");
    host.call("DEL", "two", &host.conf).unwrap();
    host.machine.output("ip", &["link", "delete", "out0"]);
    host.assert_empty();
    assert_eq!(before, "");
    let own: Vec<String> =
        host.rules().lines().filter(|line| line.contains("elements")).map(|line| line.trim().to_owned()).collect();
    assert_eq!(own.len(), 4, "one element for each network, whatever pods came and went: {own:?}");
}

#[test]
fn a_flow_of_udp_goes_where_its_port_leads_now() {
    if cannot_translate() {
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
        // Before anybody is there, so that the kernel remembers where it went.
        let _ = client.send(b"?");
        host.attach(name, &mapped);
        let server = host.machine.in_netns(name, || UdpSocket::bind("0.0.0.0:53").unwrap());
        let mut buffer = [0; 16];
        // An answer that nobody was there is still waiting to be told.
        while client.send(b"?").is_err() {}
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (length, from) =
            server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{name} heard nothing: {error}"));
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
    if cannot_translate() {
        return;
    }
    // CVE-2020-8558: mapped ports want route_localnet on the bridge.
    let host = Host::new();
    host.attach(
        "one",
        &host.with(json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } })),
    );
    let route_localnet = host.machine.output("cat", &["/proc/sys/net/ipv4/conf/berth0/route_localnet"]);
    assert_eq!(route_localnet.trim(), "1");
    let listener = host.machine.in_network(|| TcpListener::bind("127.0.0.1:7000").unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"secret"));
        }
    });
    // A pod with its own lo out of the way sends to the host's.
    host.machine.output("ip", &["-n", "one", "link", "set", "lo", "down"]);
    host.machine.output("ip", &["-n", "one", "addr", "flush", "dev", "lo"]);
    for (netns, sysctl) in [("one", "net.ipv4.conf.eth0.route_localnet"), ("one", "net.ipv4.conf.all.route_localnet")] {
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        host.machine.output("ip", &["netns", "exec", netns, "sh", "-c", &format!("echo 1 > {path}")]);
    }
    host.machine.output(
        "ip",
        &["-n", "one", "route", "add", "127.0.0.0/8", "via", "10.88.0.1", "dev", "eth0", "src", "10.88.0.2"],
    );
    let attack = || host.machine.in_netns("one", || ask(at("127.0.0.1:7000")));
    assert_eq!(attack(), "");
    // The attack itself is sound: without the rule it succeeds.
    host.machine.output("nft", &["flush", "chain", "inet", "berth", "loopback"]);
    assert_eq!(attack(), "secret");
}

#[test]
fn an_add_whose_runtime_is_gone_undoes_itself() {
    let host = Host::new();
    host.pod("one");
    let mut child = host
        .machine
        .command(binary("berth-bridge"))
        .envs([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "one"),
            ("CNI_NETNS", "/run/netns/one"),
            ("CNI_IFNAME", "eth0"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(host.conf.to_string().as_bytes()).unwrap();
    child.wait().unwrap();
    assert!(fs::exists(host.machine.path("ipam/pods/last_reserved_ip.0")).unwrap(), "it had begun");
    host.assert_empty();
}

#[test]
fn what_cannot_be_is_refused_with_its_reason_and_leaves_nothing() {
    let host = Host::new();
    let fails = |id: &str, conf: &Value, code: u32, what: &str| {
        let error = host.call("ADD", id, conf).unwrap_err();
        assert_eq!(
            (error["code"].as_u64(), error["msg"].as_str().unwrap().contains(what)),
            (Some(code.into()), true),
            "{error}"
        );
    };
    host.pod("one");
    fails("gone", &host.conf, 3, "/run/netns/gone");
    let narrow = |subnet: &str| json!({ "type": "host-local", "subnet": subnet, "dataDir": host.machine.path("ipam") });
    fails(
        "one",
        &host.with(
            json!({ "ipam": { "type": "host-local", "ranges": [[{ "subnet": V4 }, { "subnet": "10.88.3.0/24" }]] } }),
        ),
        7,
        "overlap",
    );
    fails("one", &host.with(json!({ "ipam": { "type": "no-such-ipam" } })), 5, "no-such-ipam");
    // Its own words, and its own code.
    fails(
        "one",
        &host.with(json!({ "ipam": { "type": "static" } })),
        1,
        "IPAM plugin static: incompatible CNI versions",
    );
    fails("one", &host.with(json!({ "runtimeConfig": { "mac": "01:00:5e:00:00:01" } })), 7, "MAC");
    fails("one", &host.with(json!({ "runtimeConfig": { "ips": ["192.0.2.9"] } })), 7, "192.0.2.9");
    let error = host.call_with("ADD", "one", "{", &[]).unwrap_err();
    assert_eq!(error["code"], 6);
    let error = host.call_with("ADD", "one", &host.conf.to_string(), &[("CNI_IFNAME", "")]).unwrap_err();
    assert_eq!((error["code"].as_u64(), error["msg"].as_str()), (Some(4), Some("CNI_IFNAME is not set")));
    host.assert_empty();

    // A range for one pod, and a second that wants in; and an address that is somebody's.
    let single = host.with(json!({ "ipam": narrow("10.88.1.0/30"), "runtimeConfig": { "ips": ["10.88.1.2"] } }));
    host.call("ADD", "one", &single).unwrap();
    host.pod("two");
    fails("two", &single, 103, "10.88.1.2 is in use by container one");
    fails(
        "two",
        &host.with(json!({ "ipam": narrow("10.88.1.0/30") })),
        101,
        "no address left in 10.88.1.1 to 10.88.1.2",
    );
    let full = host.call("STATUS", "two", &single).unwrap_err();
    assert_eq!(full["code"], 50);
    host.call("DEL", "one", &single).unwrap();

    // A bridge of somebody else's.
    fails("two", &host.with(json!({ "ipam": narrow("10.99.0.0/24") })), 7, "forceAddress");
    host.call("ADD", "two", &host.with(json!({ "ipam": narrow("10.99.0.0/24"), "forceAddress": true }))).unwrap();
    let addresses = host.machine.output("ip", &["-o", "-4", "addr", "show", "berth0"]);
    assert!(addresses.contains("10.99.0.1/24") && !addresses.contains("10.88"), "{addresses}");
    host.call("DEL", "two", &host.conf).unwrap();
    host.machine.output("ip", &["link", "add", "taken", "type", "veth", "peer", "name", "other"]);
    fails("one", &host.with(json!({ "bridge": "taken" })), 7, "not a bridge");
    host.machine.output("ip", &["link", "delete", "taken"]);
    host.assert_empty();
}

#[test]
fn a_port_of_the_host_is_nobodys_twice() {
    if cannot_translate() {
        return;
    }
    let host = Host::new();
    let mapped = |port: u16| {
        host.with(json!({ "runtimeConfig": { "portMappings": [
            { "hostPort": 7777, "containerPort": 1, "protocol": "udp" }, { "hostPort": port, "containerPort": 80 },
        ] } }))
    };
    host.attach(
        "first",
        &host.with(json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } })),
    );
    host.pod("second");
    let error = host.call("ADD", "second", &mapped(8080)).unwrap_err();
    assert_eq!(error["msg"], "port 8080/tcp of the host is mapped to container first already");
    // A program of the host; one on localhost only does no harm.
    let _program = host.machine.in_network(|| TcpListener::bind("0.0.0.0:9000").unwrap());
    let _local = host.machine.in_network(|| TcpListener::bind("127.0.0.53:9001").unwrap());
    let error = host.call("ADD", "second", &mapped(9000)).unwrap_err();
    assert_eq!(error["msg"], "port 9000/tcp of the host is in use by a program of the host");
    let left = host.rules();
    assert!(!left.contains("7777") && left.contains("first eth0 pods"), "all of a pod's ports or none: {left}");
    host.call("ADD", "second", &mapped(9001)).unwrap();
    for name in ["first", "second"] {
        host.call("DEL", name, &host.conf).unwrap();
    }
    host.assert_empty();
}

#[test]
fn check_finds_what_has_drifted() {
    let host = Host::new();
    let rules = !in_guest();
    let mut more = json!({});
    if rules {
        more = json!({ "ipMasq": true, "macspoofchk": true, "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] } });
    }
    let conf = host.with(more);
    let port = "port=$(ip -o link show master berth0 | cut -d' ' -f2 | cut -d@ -f1)";
    let of_rules = [
        ("nft flush map inet berth ports4", "port 8080/tcp"),
        ("nft flush set inet berth networks4", "not masqueraded"),
        ("nft flush set bridge berth macs", "any MAC"),
    ];
    let drifts = [
        ("ip -n $POD addr del $ADDRESS dev eth0", "has not the address"),
        ("ip -n $POD route del default", "no route to 0.0.0.0/0"),
        ("ip -n $POD -6 route del default", "no route to ::/0"),
        ("ip -n $POD link set eth0 down", "eth0 is missing or down"),
        ("ip link set $port nomaster", "is not a port of berth0"),
        ("ip link set $port down", "is missing or down"),
        ("ip addr flush dev berth0", "berth0 has not the address"),
        ("ip link set berth0 down", "berth0 is missing or down"),
        ("rm $IPAM/10.88.0.*", "is not reserved"),
    ];
    let all = drifts.into_iter().chain(of_rules.into_iter().filter(|_| rules));
    for (number, (command, what)) in all.enumerate() {
        let pod = format!("pod{number}");
        host.pod(&pod);
        let result = host.call("ADD", &pod, &conf).unwrap();
        let mut checked = conf.clone();
        let given = result["ips"][0]["address"].as_str().unwrap().to_owned();
        checked["prevResult"] = result;
        assert_eq!(host.call("CHECK", &pod, &checked), Ok(Value::Null), "before {command}");
        let ipam = host.machine.path("ipam/pods").display().to_string();
        let command = command.replace("$POD", &pod).replace("$ADDRESS", &given).replace("$IPAM", &ipam);
        host.machine.output("sh", &["-ec", &format!("{port}; {command}")]);
        let error = host.call("CHECK", &pod, &checked).expect_err(&command);
        assert!(error["code"] == 102 && error["msg"].as_str().unwrap().contains(what), "{command}: {error}");
        host.call("DEL", &pod, &conf).unwrap();
        let _ = host.machine.command("ip").args(["link", "delete", "berth0"]).output();
    }
}

#[test]
fn garbage_is_what_belongs_to_nobody_valid_of_the_network() {
    let host = Host::new();
    let more = if in_guest() {
        json!({})
    } else {
        json!({ "macspoofchk": true, "runtimeConfig": {
            "portMappings": [{ "hostPort": 8080, "containerPort": 80 }],
            "bandwidth": { "egressRate": 8_000_000, "egressBurst": 8_000_000 },
        } })
    };
    host.attach("stays", &host.conf);
    host.attach("goes", &host.with(more));
    // Another network on the same bridge.
    let ipam = json!({ "type": "host-local", "subnet": "10.88.200.0/24", "gateway": "10.88.200.1", "dataDir": host.machine.path("ipam") });
    host.attach("other", &host.with(json!({ "name": "others", "isDefaultGateway": false, "ipam": ipam })));
    let links = host.links().len();
    let valid = host.with(json!({ "cni.dev/valid-attachments": [{ "containerID": "stays", "ifname": "eth0" }] }));
    assert_eq!(host.call("GC", "", &valid), Ok(Value::Null));
    assert_eq!(host.call("CHECK", "stays", &host.conf), Ok(Value::Null));
    assert!(host.call("CHECK", "goes", &host.conf).is_err());
    assert_eq!(host.links().len(), if in_guest() { links - 1 } else { links - 2 }, "{:?}", host.links());
    let mut reserved = host.reserved();
    reserved.sort_unstable();
    assert_eq!(reserved, ["10.88.0.2", "fd00:88::2", "stays@eth0"]);
    assert!(fs::exists(host.machine.path("ipam/others/other@eth0")).unwrap());
    if !in_guest() {
        assert!(!host.rules().contains("comment"), "{}", host.rules());
    }
}

#[test]
fn reservations_of_another_boot_are_free() {
    let host = Host::new();
    let one = host.attach("one", &host.conf);
    fs::write(host.machine.path("ipam/pods/boot"), "another\n").unwrap();
    assert_eq!(host.attach("two", &host.with(json!({ "runtimeConfig": { "ips": [one[0]] } })))[0], one[0]);
    let mut reserved = host.reserved();
    reserved.sort_unstable();
    assert_eq!(reserved, ["10.88.0.2", "fd00:88::2", "two@eth0"]);
}

#[test]
fn the_keys_of_upstreams_bridge_do_what_they_say() {
    let host = Host::new();
    let conf = host.with(json!({
        "hairpinMode": true, "portIsolation": true, "mtu": 1300, "runtimeConfig": { "mac": "0a:00:00:00:00:07" },
        "ipam": { "type": "host-local", "subnet": V4, "gateway": "10.88.9.9", "dataDir": host.machine.path("ipam"),
            "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "198.51.100.0/24", "gw": "10.88.0.77", "priority": 7 }] },
    }));
    let one = host.attach("one", &conf);
    let two = host.attach("two", &host.with(json!({ "portIsolation": true, "ipam": conf["ipam"] })));
    let port = host.machine.output("ip", &["-d", "link", "show", "master", "berth0"]);
    assert!(port.contains("hairpin on") && port.contains("isolated on") && port.contains("mtu 1300"), "{port}");
    let inside = host.machine.output("ip", &["-n", "one", "-o", "addr", "show", "eth0"]);
    assert!(inside.contains("10.88.0.1/16"), "the gateway is another address: {inside}");
    let link = host.machine.output("ip", &["-n", "one", "link", "show", "eth0"]);
    assert!(link.contains("0a:00:00:00:00:07") && link.contains("mtu 1300"), "{link}");
    let routes = host.machine.output("ip", &["-n", "one", "route"]);
    for route in [
        "default via 10.88.9.9",
        "192.0.2.0/24 via 10.88.9.9",
        "198.51.100.0/24 via 10.88.0.77 dev eth0 proto static metric 7",
    ] {
        assert!(routes.contains(route), "{routes}");
    }
    host.serve("one", 80, "one");
    assert_eq!(host.machine.in_network(|| ask((one[0], 80))), "one");
    assert_eq!(host.machine.in_netns("two", || ask((one[0], 80))), "", "isolated ports do not meet");
    assert_ne!(one, two);

    host.attach(
        "three",
        &host.with(json!({ "bridge": "berth1", "promiscMode": true, "isDefaultGateway": false, "isGateway": false,
        "ipam": { "type": "host-local", "subnet": "10.90.0.0/24", "dataDir": host.machine.path("ipam") } })),
    );
    let bridge = host.machine.output("ip", &["-d", "link", "show", "berth1"]);
    assert!(bridge.contains("PROMISC"), "{bridge}");
    assert!(host.machine.output("ip", &["-o", "-4", "addr", "show", "berth1"]).is_empty(), "no gateway was asked for");
    assert!(!host.machine.output("ip", &["-n", "three", "route"]).contains("default"));

    host.pod("four");
    let bare = host
        .call("ADD", "four", &host.with(json!({ "bridge": "berth2", "ipam": {}, "disableContainerInterface": true })))
        .unwrap();
    assert_eq!(bare["ips"], json!([]));
    let link = host.machine.output("ip", &["-n", "four", "link", "show", "eth0"]);
    assert!(link.contains("state DOWN"), "{link}");

    let checked = host.attach("five", &host.with(json!({ "bridge": "berth3", "enabledad": true })));
    let inside = host.machine.output("ip", &["-n", "five", "-6", "addr", "show", "eth0"]);
    assert!(inside.contains(&checked[1].to_string()) && !inside.contains("tentative"), "{inside}");

    // By CNI_ARGS, as old runtimes say it.
    host.pod("six");
    let args = [("CNI_ARGS", "IgnoreUnknown=1;IP=10.88.7.7;MAC=0a:00:00:00:00:08")];
    let six = host.call_with("ADD", "six", &host.with(json!({ "bridge": "berth3" })).to_string(), &args).unwrap();
    assert_eq!(
        (&six["ips"][0]["address"], &six["interfaces"][2]["mac"]),
        (&json!("10.88.7.7/16"), &json!("0a:00:00:00:00:08"))
    );
}

#[test]
fn a_pod_cannot_pass_for_another_with_macspoofchk() {
    let host = Host::new();
    let one = host.attach("one", &host.with(json!({ "macspoofchk": true })));
    host.serve("one", 80, "one");
    assert_eq!(host.machine.in_network(|| ask((one[0], 80))), "one");
    let spoof = ["-n", "one", "link", "set", "eth0", "address", "0a:00:00:00:00:99"];
    host.machine.output("ip", &spoof);
    assert_eq!(host.machine.in_network(|| ask((one[0], 80))), "");
    host.call("DEL", "one", &host.conf).unwrap();
    assert!(!host.rules().contains("comment"), "{}", host.rules());
}

#[test]
fn bandwidth_is_limited_in_both_directions() {
    if in_guest() {
        return eprintln!("skipped: this kernel has no token bucket filter");
    }
    let host = Host::new();
    // A megabyte at once, then a megabyte a second.
    let limits = json!({ "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000 });
    let one = host.attach("one", &host.with(json!({ "runtimeConfig": { "bandwidth": limits } })));
    let listener = host.machine.in_netns("one", || TcpListener::bind("0.0.0.0:80").unwrap());
    // Echoes.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut everything = Vec::new();
                let _ = stream.read_to_end(&mut everything);
                let _ = stream.write_all(&everything);
            });
        }
    });
    let mut stream = host.machine.in_network(|| TcpStream::connect((one[0], 80)).unwrap());
    let begun = Instant::now();
    stream.write_all(&vec![0; 2_500_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    let there = begun.elapsed();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let back = begun.elapsed() - there;
    assert_eq!(rest.len(), 2_499_999);
    for (direction, took) in [("to the pod", there), ("from the pod", back)] {
        assert!(took > Duration::from_millis(900), "{direction}: 2.5 MB took {took:?}");
    }
    host.call("DEL", "one", &host.conf).unwrap();
    host.assert_empty();
}

#[test]
fn another_program_can_give_the_addresses() {
    let host = Host::new();
    let ipam = json!({ "type": "static", "addresses": [{ "address": "10.88.5.5/16", "gateway": "10.88.0.1" }], "routes": [{ "dst": "0.0.0.0/0" }] });
    let conf = host.with(json!({ "cniVersion": "1.0.0", "ipam": ipam }));
    assert_eq!(host.attach("one", &conf)[0].to_string(), "10.88.5.5");
    assert!(host.machine.output("ip", &["-n", "one", "route"]).contains("default via 10.88.0.1"));
    assert_eq!(host.call("STATUS", "one", &conf), Ok(Value::Null), "one that knows no STATUS has nothing against it");
    assert_eq!(host.call("GC", "one", &conf), Ok(Value::Null));
    host.call("DEL", "one", &conf).unwrap();
    host.assert_empty();
}

#[test]
fn vlans_keep_pods_apart() {
    let host = Host::new();
    host.pod("one");
    let ipam = |subnet: &str| json!({ "type": "host-local", "subnet": subnet, "dataDir": host.machine.path("ipam") });
    let conf = |vlan: u16, subnet: &str| {
        host.with(json!({ "vlan": vlan, "preserveDefaultVlan": false, "ipam": ipam(subnet) }))
    };
    let first = host.call("ADD", "one", &conf(100, "10.100.0.0/24"));
    if let Err(error) = &first {
        assert!(error["msg"].as_str().unwrap().contains("not supported"), "{error}");
        host.assert_empty();
        return eprintln!("skipped: this kernel's bridges know no VLANs");
    }
    host.attach("two", &conf(100, "10.100.0.0/24"));
    host.attach("three", &conf(200, "10.200.0.0/24"));
    host.serve("one", 80, "one");
    assert_eq!(host.machine.in_netns("two", || ask(at("10.100.0.2:80"))), "one");
    assert_eq!(host.machine.in_network(|| ask(at("10.100.0.2:80"))), "one", "the host is in the VLAN by berth0.100");
    host.machine.output("ip", &["-n", "three", "addr", "add", "10.100.0.9/24", "dev", "eth0"]);
    assert_eq!(host.machine.in_netns("three", || ask(at("10.100.0.2:80"))), "", "another VLAN");
    assert_eq!(host.call("CHECK", "one", &conf(100, "10.100.0.0/24")), Ok(Value::Null));
}
