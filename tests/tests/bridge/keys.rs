//! The keys of upstream's bridge plugin, and those of the plugins that are usually chained behind
//! it.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use berth_tests::{Capability, skip_without};
use serde_json::json;

use crate::host::{Host, V4, ask};

#[test]
fn the_keys_of_upstreams_bridge_do_what_they_say() {
    let host = Host::new();
    let conf = host.with(json!({
        "hairpinMode": true, "portIsolation": true, "mtu": 1300,
        "runtimeConfig": { "mac": "0a:00:00:00:00:07" },
        "ipam": { "type": "host-local", "subnet": V4, "gateway": "10.88.9.9",
            "dataDir": host.machine.path("ipam"),
            "routes": [{ "dst": "192.0.2.0/24" },
                { "dst": "198.51.100.0/24", "gw": "10.88.0.77", "priority": 7 }] },
    }));
    let one = host.attach("one", &conf);
    let two =
        host.attach("two", &host.with(json!({ "portIsolation": true, "ipam": conf["ipam"] })));
    let port = host.machine.output("ip", &["-d", "link", "show", "master", "berth0"]);
    assert!(
        port.contains("hairpin on") && port.contains("isolated on") && port.contains("mtu 1300"),
        "{port}"
    );
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
    assert_eq!(
        host.machine.in_netns("two", || ask((one[0], 80))),
        "",
        "isolated ports do not meet"
    );
    assert_ne!(one, two);

    host.attach(
        "three",
        &host.with(json!({
        "bridge": "berth1", "promiscMode": true, "isDefaultGateway": false, "isGateway": false,
        "ipam": { "type": "host-local", "subnet": "10.90.0.0/24",
            "dataDir": host.machine.path("ipam") } })),
    );
    let bridge = host.machine.output("ip", &["-d", "link", "show", "berth1"]);
    assert!(bridge.contains("PROMISC"), "{bridge}");
    assert!(
        host.machine.output("ip", &["-o", "-4", "addr", "show", "berth1"]).is_empty(),
        "no gateway was asked for"
    );
    assert!(!host.machine.output("ip", &["-n", "three", "route"]).contains("default"));

    host.pod("four");
    let bare = host
        .call(
            "ADD",
            "four",
            &host
                .with(json!({ "bridge": "berth2", "ipam": {}, "disableContainerInterface": true })),
        )
        .unwrap();
    assert_eq!(bare["ips"], json!([]));
    let link = host.machine.output("ip", &["-n", "four", "link", "show", "eth0"]);
    assert!(link.contains("state DOWN"), "{link}");

    let checked = host.attach("five", &host.with(json!({ "bridge": "berth3", "enabledad": true })));
    let inside = host.machine.output("ip", &["-n", "five", "-6", "addr", "show", "eth0"]);
    assert!(inside.contains(&checked[1].to_string()) && !inside.contains("tentative"), "{inside}");

    // In CNI_ARGS, where older runtimes put it.
    host.pod("six");
    let args = [("CNI_ARGS", "IgnoreUnknown=1;IP=10.88.7.7;MAC=0a:00:00:00:00:08")];
    let six = host
        .call_with("ADD", "six", &host.with(json!({ "bridge": "berth3" })).to_string(), &args)
        .unwrap();
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
    if skip_without(Capability::TokenBucket) {
        return;
    }
    let host = Host::new();
    // A burst of one megabyte, then one megabyte a second.
    let limits = json!({
        "ingressRate": 8_000_000,
        "ingressBurst": 8_000_000,
        "egressRate": 8_000_000,
        "egressBurst": 8_000_000,
    });
    let one = host.attach("one", &host.with(json!({ "runtimeConfig": { "bandwidth": limits } })));
    let listener = host.machine.in_netns("one", || TcpListener::bind("0.0.0.0:80").unwrap());
    // An echo server that answers when it has read everything.
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
