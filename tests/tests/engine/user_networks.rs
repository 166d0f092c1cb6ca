//! Networks that users make: their records and bridges, who is on them, names, and what daemons that are
//! killed leave of all this.

use std::fs;

use berth_tests::{Capability, Engine, Machine, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, run, succeed};

/// A container that answers with its name on port 80.
async fn serve(engine: &Engine, image: &str, name: &str, network: &str, aliases: &[&str]) {
    let script = format!("exec nc -ll -p 80 -e echo {name}");
    let body = json!({
        "Image": image,
        "Cmd": ["sh", "-c", script],
        "StopSignal": "SIGKILL",
        "HostConfig": { "NetworkMode": network },
        "NetworkingConfig": { "EndpointsConfig": { network: { "Aliases": aliases } } },
    });
    engine.create(name, body).await;
    engine.start(name).await;
}

/// What is served under a name, as a container on a network sees it; nothing if nobody answers.
fn ask(machine: &Machine, image: &str, network: &str, name: &str) -> String {
    let script = format!("nc -w 2 {name} 80 </dev/null 2>/dev/null || true");
    run(machine, &["--network", network], image, &script)
}

/// The interfaces of the machine whose names begin like those of bridges of docker's.
fn bridges(machine: &Machine) -> Vec<String> {
    let links = machine.output("ip", &["-br", "link", "show", "type", "bridge"]);
    let names = links.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "docker0" && *name != "berth0").map(str::to_owned).collect()
}

async fn networks(engine: &Engine) -> Vec<String> {
    let listed = engine.get(r#"/networks?filters={"type":["custom"]}"#).await;
    let name = |network: &Value| network["Name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

/// Nothing is left of networks: no bridge, no record, no address, no element of a set.
async fn assert_no_networks(machine: &Machine, engine: &Engine) {
    assert!(networks(engine).await.is_empty());
    assert!(bridges(machine).is_empty(), "{:?}", bridges(machine));
    let records = fs::read_dir(machine.path("root/engine/networks")).unwrap();
    assert_eq!(records.count(), 0);
    let rules = machine.output("nft", &["list", "ruleset"]);
    assert!(!rules.contains("\"br-") && !rules.contains("10.77."), "{rules}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_network_has_a_bridge_for_as_long_as_it_is_there() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    let options = ["--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "--label", "a=b"];
    let id = succeed(&machine, &[&["network", "create"], &options[..], &["net1"]].concat());
    assert_eq!(bridges(&machine), [format!("br-{}", &id[..12])]);
    let addresses = machine.output("ip", &["-4", "-br", "addr"]);
    assert!(addresses.contains("10.77.0.9/24"), "{addresses}");
    let said = fail(&machine, &["network", "create", "net1"]);
    assert!(said.contains("network with name net1 already exists"), "{said}");
    let said = fail(&machine, &["network", "create", "--subnet", "10.77.0.128/25", "net2"]);
    assert!(said.contains("Pool overlaps with other one on this address space"), "{said}");
    succeed(&machine, &["run", "-d", "--name", "on", "--network", "net1", &image, "sleep", "1000"]);
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(networks(&engine).await, ["net1"]);
    let network = engine.get("/networks/net1").await;
    assert_eq!((network["Id"].as_str(), network["Labels"]["a"].as_str()), (Some(&*id), Some("b")));
    let members = network["Containers"].as_object().unwrap();
    let member = members.values().next().expect("the container is on it");
    assert_eq!(member["IPv4Address"], "10.77.0.1/24");
    let said = fail(&machine, &["network", "rm", "net1"]);
    assert!(said.contains("network net1 has active endpoints (name:\"on\" id:"), "{said}");
    succeed(&machine, &["rm", "-f", "on"]);
    // A crash takes nothing of what a removal has to take away.
    daemon.kill();
    let _daemon = machine.start().await;
    succeed(&machine, &["network", "rm", "net1"]);
    assert!(fail(&machine, &["network", "rm", "net1"]).contains("network net1 not found"));
    succeed(&machine, &["network", "create", "net1"]);
    assert!(succeed(&machine, &["network", "prune", "-f"]).contains("net1"));
    assert_no_networks(&machine, &engine).await;
}

#[tokio::test]
async fn containers_on_a_network_find_each_other_by_name() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "net1"]);
    succeed(&machine, &["network", "create", "net2"]);
    serve(&engine, &image, "web", "net1", &["www", "site"]).await;
    for name in ["web", "www", "site"] {
        assert_eq!(ask(&machine, &image, "net1", name), "web", "{name}");
    }
    // Nobody else knows the name, nor comes to the address.
    let inspected = engine.inspect("web").await;
    let address = inspected["NetworkSettings"]["Networks"]["net1"]["IPAddress"].as_str().unwrap();
    for network in ["net2", "bridge"] {
        assert_eq!(ask(&machine, &image, network, "web"), "", "{network}");
        assert_eq!(ask(&machine, &image, network, address), "", "{network}");
    }
    // Names are there while the daemon is not, and those of one that comes later after it is again.
    succeed(
        &machine,
        &["run", "-d", "--name", "asks", "--network", "net1", &image, "sleep", "1000"],
    );
    let hosts = |machine: &Machine| succeed(machine, &["exec", "asks", "cat", "/etc/hosts"]);
    assert!(hosts(&machine).contains(&format!("{address}\tweb www site")), "{}", hosts(&machine));
    succeed(&machine, &["exec", "asks", "sh", "-c", "echo '1.2.3.4 own' >> /etc/hosts"]);
    daemon.kill();
    let _daemon = machine.start().await;
    serve(&engine, &image, "later", "net1", &[]).await;
    let text = hosts(&machine);
    assert!(text.contains("\tlater") && text.contains("\tweb www"), "{text}");
    assert!(text.contains("1.2.3.4 own"), "what a container has written stays: {text}");
    succeed(&machine, &["rename", "later", "renamed"]);
    let text = hosts(&machine);
    assert!(text.contains("\trenamed") && !text.contains("\tlater"), "{text}");
    succeed(&machine, &["rm", "-f", "web"]);
    let text = hosts(&machine);
    assert!(text.contains("\trenamed") && !text.contains("\tweb"), "{text}");
    // A file that a container has made large is not read, and the trouble of nobody else.
    succeed(&machine, &["exec", "asks", "sh", "-c", "truncate -s 1G /etc/hosts"]);
    serve(&engine, &image, "last", "net1", &[]).await;
    assert_eq!(ask(&machine, &image, "net1", "last"), "last");
    succeed(&machine, &["rm", "-f", "asks", "renamed", "last"]);
    succeed(&machine, &["network", "rm", "net1", "net2"]);
    assert_no_networks(&machine, &engine).await;
}

#[tokio::test]
async fn a_container_comes_to_networks_and_leaves_them_while_it_runs() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "net1"]);
    succeed(&machine, &["network", "create", "--subnet", "10.77.1.0/24", "net2"]);
    serve(&engine, &image, "both", "net1", &[]).await;
    assert_eq!(ask(&machine, &image, "net2", "both"), "");
    succeed(
        &machine,
        &["network", "connect", "--alias", "too", "--ip", "10.77.1.7", "net2", "both"],
    );
    for name in ["both", "too", "10.77.1.7"] {
        assert_eq!(ask(&machine, &image, "net2", name), "both", "{name}");
    }
    let said = fail(&machine, &["network", "connect", "net2", "both"]);
    assert!(said.contains("endpoint with name both already exists in network net2"), "{said}");
    // Somebody has that address.
    let taken = ["run", "--rm", "--network", "net2", "--ip", "10.77.1.7", &image, "true"];
    assert!(fail(&machine, &taken).contains("Address already in use"));
    // Both are there over the ends of daemons, and of the container itself.
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(ask(&machine, &image, "net2", "too"), "both");
    succeed(&machine, &["restart", "-t", "0", "both"]);
    assert_eq!(ask(&machine, &image, "net1", "both"), "both");
    assert_eq!(ask(&machine, &image, "net2", "10.77.1.7"), "both");
    succeed(&machine, &["network", "disconnect", "net1", "both"]);
    assert_eq!(ask(&machine, &image, "net1", "both"), "");
    let addresses = succeed(&machine, &["exec", "both", "ip", "-4", "-o", "addr"]);
    assert!(addresses.contains("10.77.1.7/24") && addresses.lines().count() == 2, "{addresses}");
    let said = fail(&machine, &["network", "disconnect", "net1", "both"]);
    assert!(said.contains("is not connected to network net1"), "{said}");
    succeed(&machine, &["rm", "-f", "both"]);
    succeed(&machine, &["network", "rm", "net1", "net2"]);
    assert_no_networks(&machine, &engine).await;
}

#[tokio::test]
async fn an_internal_network_leads_nowhere_and_addresses_come_from_its_range() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "--internal", "in"]);
    assert_eq!(
        run(&machine, &["--network", "in"], &image, "ip route | grep -c default || true"),
        "0"
    );
    let range = ["--ip-range", "10.77.2.128/30", "--aux-address", "router=10.77.2.129"];
    let options = [&["network", "create", "--subnet", "10.77.2.0/24"], &range[..], &["ranged"]];
    succeed(&machine, &options.concat());
    let address = run(&machine, &["--network", "ranged"], &image, "ip -4 -o addr show eth0");
    assert!(address.contains("10.77.2.130/24"), "{address}");
    for (options, what) in [
        (&["--subnet", "10.77.3.1/24"][..], "it should be 10.77.3.0/24"),
        (
            &["--subnet", "10.77.3.0/24", "--gateway", "10.78.0.1"],
            "no matching subnet for gateway 10.78.0.1",
        ),
        (&["--driver", "nope"], "plugin \"nope\" not found"),
    ] {
        let said = fail(&machine, &[&["network", "create"], options, &["bad"]].concat());
        assert!(said.contains(what), "{options:?}: {said}");
    }
    succeed(&machine, &["network", "rm", "in", "ranged"]);
    assert_no_networks(&machine, &engine).await;
}
