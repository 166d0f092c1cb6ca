//! What berthd asks of the plugin beside CNI: networks that come and go, and which of a container's
//! networks leads it outside.

use berth_tests::{Capability, skip_without};
use serde_json::{Value, json};

use crate::host::Host;

#[test]
fn a_network_is_made_and_removed_whole() {
    if skip_without(Capability::Nat) {
        return;
    }
    let host = Host::new();
    let conf = host.with(json!({ "ipMasq": true, "isolation": "closed", "bridge": "br-test" }));
    for _ in 0..2 {
        assert_eq!(host.call("BERTH_UP", "", &conf), Ok(Value::Null), "also a second time");
    }
    let addresses = host.machine.output("ip", &["-br", "addr", "show", "dev", "br-test"]);
    assert!(addresses.contains("10.88.0.1/16") && addresses.contains("fd00:88::1/64"));
    host.attach("pod", &conf);
    host.call("DEL", "pod", &conf).unwrap();
    for _ in 0..2 {
        assert_eq!(host.call("BERTH_DOWN", "", &conf), Ok(Value::Null), "also a second time");
    }
    assert!(!host.machine.output("ip", &["-br", "link"]).contains("br-test"));
    assert!(!host.machine.path("ipam/pods").exists());
    let rules = host.machine.output("nft", &["list", "ruleset"]);
    assert!(!rules.contains("br-test") && !rules.contains("10.88."), "{rules}");
}

#[test]
fn an_interface_that_is_no_bridge_is_nobodys_network() {
    let host = Host::new();
    host.machine.output("ip", &["link", "add", "other", "type", "veth", "peer", "name", "other2"]);
    let conf = host.with(json!({ "bridge": "other" }));
    for command in ["BERTH_UP", "BERTH_DOWN"] {
        assert_eq!(host.call(command, "", &conf).unwrap_err()["code"], 7, "{command}");
    }
    assert!(host.machine.output("ip", &["-br", "link"]).contains("other"));
}

#[test]
fn a_network_leads_a_container_outside_or_does_not() {
    let host = Host::new();
    let mut conf = host.with(json!({ "isDefaultGateway": false, "isGateway": true }));
    host.pod("pod");
    conf["prevResult"] = host.call("ADD", "pod", &conf).unwrap();
    let routes = || host.machine.output("ip", &["-n", "pod", "route"]);
    assert!(!routes().contains("default"));
    for _ in 0..2 {
        host.call("BERTH_LEAD", "pod", &conf).unwrap();
        assert!(routes().contains("default via 10.88.0.1 dev eth0"), "{}", routes());
    }
    for _ in 0..2 {
        host.call("BERTH_YIELD", "pod", &conf).unwrap();
        assert!(!routes().contains("default"), "{}", routes());
    }
    host.call("DEL", "pod", &conf).unwrap();
}
