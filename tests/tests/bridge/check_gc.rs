//! CHECK finds what differs from the result of ADD; GC removes what belongs to no valid attachment.

use std::{
    fs,
    io::Write,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use berth_tests::Capability;
use serde_json::{Value, json};

use crate::host::Host;

#[test]
fn check_finds_what_has_drifted() {
    let host = Host::new();
    let rules = Capability::Nat.is_there();
    let mut more = json!({});
    if rules {
        more = json!({
            "ipMasq": true,
            "macspoofchk": true,
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] },
        });
    }
    let conf = host.with(more);
    let port = "port=$(ip -o link show master berth0 | cut -d' ' -f2 | cut -d@ -f1)";
    let of_rules = [
        ("nft flush map inet berth ports4", "port 8080/tcp"),
        ("nft flush set inet berth networks4", "not masqueraded"),
        ("nft flush set bridge berth macs", "any MAC"),
    ];
    let drifts = [
        ("ip -n $POD addr del $ADDRESS dev eth0", "does not have the address"),
        ("ip -n $POD route del default", "no route to 0.0.0.0/0"),
        ("ip -n $POD -6 route del default", "no route to ::/0"),
        ("ip -n $POD link set eth0 down", "eth0 is missing or down"),
        ("ip link set $port nomaster", "is not a port of berth0"),
        ("ip link set $port down", "is missing or down"),
        ("ip addr flush dev berth0", "berth0 does not have the address"),
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
        let command =
            command.replace("$POD", &pod).replace("$ADDRESS", &given).replace("$IPAM", &ipam);
        host.machine.output("sh", &["-ec", &format!("{port}; {command}")]);
        let error = host.call("CHECK", &pod, &checked).expect_err(&command);
        assert!(
            error["code"] == 102 && error["msg"].as_str().unwrap().contains(what),
            "{command}: {error}"
        );
        host.call("DEL", &pod, &conf).unwrap();
        let _ = host.machine.command("ip").args(["link", "delete", "berth0"]).output();
    }
}

#[test]
fn an_address_is_not_missed_in_a_list_that_changes_while_it_is_read() {
    let host = Host::new();
    host.attach("one", &host.conf);
    let ip = |verb: &str, addresses: std::ops::Range<u16>| {
        let mut child =
            host.machine.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let line = |number| format!("addr {verb} fd00:77::{number:x}/128 dev berth0 nodad\n");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(addresses.map(line).collect::<String>().as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
    };
    // The kernel lists new addresses first, so that the gateway's is in the last part of the list.
    ip("add", 1..1500);
    let stop = AtomicBool::new(false);
    let (begun, seconds, stop, ip, host) =
        (Instant::now(), Duration::from_secs(6), &stop, &ip, &host);
    let check = || {
        let mut checked = Ok(Value::Null);
        while checked.is_ok() && begun.elapsed() < seconds && !stop.load(Ordering::Relaxed) {
            checked = host.call("CHECK", "one", &host.conf);
        }
        stop.store(true, Ordering::Relaxed);
        checked
    };
    thread::scope(|scope| {
        let checks = [(); 3].map(|()| scope.spawn(check));
        while !stop.load(Ordering::Relaxed) {
            ip("del", 1000..1500);
            ip("add", 1000..1500);
        }
        for check in checks {
            assert_eq!(check.join().unwrap(), Ok(Value::Null));
        }
    });
}

#[test]
fn garbage_is_what_belongs_to_nobody_valid_of_the_network() {
    let host = Host::new();
    let limited = Capability::Nat.is_there() && Capability::TokenBucket.is_there();
    let more = if !limited {
        json!({})
    } else {
        json!({ "macspoofchk": true, "runtimeConfig": {
            "portMappings": [{ "hostPort": 8080, "containerPort": 80 }],
            "bandwidth": { "egressRate": 8_000_000, "egressBurst": 8_000_000 },
        } })
    };
    host.attach("stays", &host.conf);
    host.attach("goes", &host.with(more));
    // Another network, on the same bridge.
    let ipam = json!({
        "type": "host-local",
        "subnet": "10.88.200.0/24",
        "gateway": "10.88.200.1",
        "dataDir": host.machine.path("ipam"),
    });
    host.attach(
        "other",
        &host.with(json!({ "name": "others", "isDefaultGateway": false, "ipam": ipam })),
    );
    let links = host.links().len();
    let valid = host.with(
        json!({ "cni.dev/valid-attachments": [{ "containerID": "stays", "ifname": "eth0" }] }),
    );
    assert_eq!(host.call("GC", "", &valid), Ok(Value::Null));
    assert_eq!(host.call("CHECK", "stays", &host.conf), Ok(Value::Null));
    assert!(host.call("CHECK", "goes", &host.conf).is_err());
    assert_eq!(
        host.links().len(),
        if limited { links - 2 } else { links - 1 },
        "{:?}",
        host.links()
    );
    let mut reserved = host.reserved();
    reserved.sort_unstable();
    assert_eq!(reserved, ["10.88.0.2", "fd00:88::2", "stays@eth0"]);
    assert!(fs::exists(host.machine.path("ipam/others/other@eth0")).unwrap());
    {
        assert!(!host.rules().contains("comment"), "{}", host.rules());
    }
}
