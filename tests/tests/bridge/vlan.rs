//! VLANs of a bridge: pods with different tags do not reach each other.

use berth_tests::{Capability, skip_without};
use serde_json::{Value, json};

use crate::host::{Host, ask, at};

#[test]
fn vlans_keep_pods_apart() {
    let host = Host::new();
    host.pod("one");
    let ipam = |subnet: &str| {
        json!({
            "type": "host-local",
            "subnet": subnet,
            "dataDir": host.machine.path("ipam"),
        })
    };
    let conf = |vlan: u16, subnet: &str| {
        host.with(json!({ "vlan": vlan, "preserveDefaultVlan": false, "ipam": ipam(subnet) }))
    };
    let first = host.call("ADD", "one", &conf(100, "10.100.0.0/24"));
    if skip_without(Capability::BridgeVlans) {
        // A kernel without VLAN filtering refuses, and nothing is left.
        let error = first.unwrap_err();
        // The C libraries differ in the first letter.
        assert!(error["msg"].as_str().unwrap().contains("ot supported"), "{error}");
        return host.assert_empty();
    }
    first.unwrap();
    host.attach("two", &conf(100, "10.100.0.0/24"));
    host.attach("three", &conf(200, "10.200.0.0/24"));
    host.serve("one", 80, "one");
    assert_eq!(host.machine.in_netns("two", || ask(at("10.100.0.2:80"))), "one");
    assert_eq!(
        host.machine.in_network(|| ask(at("10.100.0.2:80"))),
        "one",
        "the host is in the VLAN by berth0.100"
    );
    host.machine.output("ip", &["-n", "three", "addr", "add", "10.100.0.9/24", "dev", "eth0"]);
    assert_eq!(host.machine.in_netns("three", || ask(at("10.100.0.2:80"))), "", "another VLAN");
    assert_eq!(host.call("CHECK", "one", &conf(100, "10.100.0.0/24")), Ok(Value::Null));
}
