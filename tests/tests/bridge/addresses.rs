//! ADD and DEL of addresses: results of each version of CNI, reservations, and configurations that
//! are refused.

use std::{fs, io::Write, process::Stdio};

use berth_tests::binary;
use serde_json::{Value, json};

use crate::host::{Host, V4, ask};

#[test]
fn pods_have_addresses_of_both_families_and_reach_one_another_and_the_host() {
    let host = Host::new();
    let one = host.attach("one", &host.conf);
    let two = host.attach("two", &host.conf);
    assert_eq!(format!("{one:?} {two:?}"), "[10.88.0.2, fd00:88::2] [10.88.0.3, fd00:88::3]");
    host.serve("one", 80, "one");
    for address in one {
        assert_eq!(host.machine.in_netns("two", || ask((address, 80))), "one", "{address}");
        assert_eq!(
            host.machine.in_network(|| ask((address, 80))),
            "one",
            "{address} from the host"
        );
    }
    assert_eq!(host.call("CHECK", "one", &host.conf), Ok(Value::Null));
    assert_eq!(host.call("STATUS", "one", &host.conf), Ok(Value::Null));
    // DEL with and without the namespace, and again for a pod that is gone.
    assert_eq!(host.call("DEL", "one", &host.conf), Ok(Value::Null));
    for _ in 0..2 {
        assert_eq!(
            host.call_with("DEL", "two", &host.conf.to_string(), &[("CNI_NETNS", "")]),
            Ok(Value::Null)
        );
    }
    host.assert_empty();
    // The next pod gets the next address, not the one that was just freed.
    assert_eq!(host.attach("three", &host.conf)[0].to_string(), "10.88.0.4");
}

#[test]
fn results_have_the_form_of_the_version_that_was_asked_for() {
    let host = Host::new();
    host.pod("one");
    let mac = "0a:58:0a:58:00:02";
    let result = host
        .call(
            "ADD",
            "one",
            &host.with(json!({ "mtu": 1400, "dns": { "nameservers": ["10.0.0.10"] } })),
        )
        .unwrap();
    let inside = &result["interfaces"][2];
    assert_eq!(
        *inside,
        json!({ "name": "eth0", "mac": mac, "mtu": 1400, "sandbox": "/run/netns/one" })
    );
    assert_eq!(result["interfaces"][0]["name"], "berth0");
    assert_eq!(
        result["ips"][0],
        json!({ "address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 2 })
    );
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "10.88.0.1" }, { "dst": "::/0", "gw": "fd00:88::1" }])
    );
    assert_eq!(result["dns"], json!({ "nameservers": ["10.0.0.10"] }));
    host.pod("two");
    let old = host.call("ADD", "two", &host.with(json!({ "cniVersion": "0.3.1" }))).unwrap();
    assert_eq!((&old["cniVersion"], &old["ips"][1]["version"]), (&json!("0.3.1"), &json!("6")));
    let refused =
        host.call("ADD", "two", &host.with(json!({ "cniVersion": "0.2.0" }))).unwrap_err();
    assert_eq!(refused["code"], 1);
}

/// A container that starts anew has the port of the run before, which the kernel deletes with that
/// run's namespace whenever it gets round to it: before, after or while the plugin looks.
#[test]
fn a_port_that_goes_with_its_namespace_is_in_no_later_adds_way() {
    let host = Host::new();
    let ends = ("CNI_ARGS", "IgnoreUnknown=1;BERTH_NETNS_ENDS=1");
    let conf = host.conf.to_string();
    let netns: Vec<String> = (0..20).map(|run| format!("run-{run}")).collect();
    netns.iter().for_each(|name| host.pod(name));
    for name in &netns {
        let path = ("CNI_NETNS", &*format!("/run/netns/{name}"));
        host.call_with("ADD", "again", &conf, &[path]).unwrap();
        host.call_with("DEL", "again", &conf, &[path, ends]).unwrap();
        host.machine.output("ip", &["netns", "del", name]);
    }
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
    let narrow = |subnet: &str| {
        json!({
            "type": "host-local",
            "subnet": subnet,
            "dataDir": host.machine.path("ipam"),
        })
    };
    fails(
        "one",
        &host.with(json!({
            "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": V4 }, { "subnet": "10.88.3.0/24" }]] },
        })),
        7,
        "overlap",
    );
    fails("one", &host.with(json!({ "ipam": { "type": "no-such-ipam" } })), 5, "no-such-ipam");
    // The delegate's own message and code.
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
    let error =
        host.call_with("ADD", "one", &host.conf.to_string(), &[("CNI_IFNAME", "")]).unwrap_err();
    assert_eq!(
        (error["code"].as_u64(), error["msg"].as_str()),
        (Some(4), Some("CNI_IFNAME is not set"))
    );
    host.assert_empty();

    // A range with room for one pod, a second pod that finds no address, and a requested address
    // that is in use.
    let single = host
        .with(json!({ "ipam": narrow("10.88.1.0/30"), "runtimeConfig": { "ips": ["10.88.1.2"] } }));
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

    // A bridge that somebody else has given another address.
    fails("two", &host.with(json!({ "ipam": narrow("10.99.0.0/24") })), 7, "forceAddress");
    host.call(
        "ADD",
        "two",
        &host.with(json!({ "ipam": narrow("10.99.0.0/24"), "forceAddress": true })),
    )
    .unwrap();
    let addresses = host.machine.output("ip", &["-o", "-4", "addr", "show", "berth0"]);
    assert!(addresses.contains("10.99.0.1/24") && !addresses.contains("10.88"), "{addresses}");
    host.call("DEL", "two", &host.conf).unwrap();
    host.machine.output("ip", &["link", "add", "taken", "type", "veth", "peer", "name", "other"]);
    fails("one", &host.with(json!({ "bridge": "taken" })), 7, "not a bridge");
    host.machine.output("ip", &["link", "delete", "taken"]);
    host.assert_empty();
}

#[test]
fn reservations_of_another_boot_are_free() {
    let host = Host::new();
    let one = host.attach("one", &host.conf);
    fs::write(host.machine.path("ipam/pods/boot"), "00000000-0000-0000-0000-000000000000\n")
        .unwrap();
    assert_eq!(
        host.attach("two", &host.with(json!({ "runtimeConfig": { "ips": [one[0]] } })))[0],
        one[0]
    );
    let mut reserved = host.reserved();
    reserved.sort_unstable();
    assert_eq!(reserved, ["10.88.0.2", "fd00:88::2", "two@eth0"]);
}

#[test]
fn another_program_can_give_the_addresses() {
    let host = Host::new();
    let ipam = json!({
        "type": "static",
        "addresses": [{ "address": "10.88.5.5/16", "gateway": "10.88.0.1" }],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let conf = host.with(json!({ "cniVersion": "1.0.0", "ipam": ipam }));
    assert_eq!(host.attach("one", &conf)[0].to_string(), "10.88.5.5");
    assert!(host.machine.output("ip", &["-n", "one", "route"]).contains("default via 10.88.0.1"));
    assert_eq!(
        host.call("STATUS", "one", &conf),
        Ok(Value::Null),
        "one that knows no STATUS has nothing against it"
    );
    assert_eq!(host.call("GC", "one", &conf), Ok(Value::Null));
    host.call("DEL", "one", &conf).unwrap();
    host.assert_empty();
}
