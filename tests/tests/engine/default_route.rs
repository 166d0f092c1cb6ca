//! Which of several networks leads a container outside, as it comes to them and leaves them.

use berth_tests::{Capability, Machine, eventually, skip_without};
use serde_json::{Value, json};

use crate::{networks::served, ready};

/// What docker says, which succeeds.
fn docker(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.docker(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Where the default route of `web` leads, as in `172.17.0.1 dev eth0`.
fn route(machine: &Machine) -> String {
    let routes = docker(machine, &["exec", "web", "ip", "route"]);
    let default = routes.lines().filter_map(|line| line.strip_prefix("default via "));
    default.map(str::trim).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn the_default_route_and_the_ports_go_with_the_networks() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    for (name, subnet, option) in [
        ("high", "10.90.1.0/24", "--label=a"),
        ("low", "10.90.2.0/24", "--label=a"),
        ("closed", "10.90.3.0/24", "--internal"),
    ] {
        docker(&machine, &["network", "create", option, "--subnet", subnet, name]);
    }
    let server = "exec nc -ll -p 80 -e echo web";
    let run = ["run", "-d", "--name", "web", "-p", "8080:80", "--network", "low"];
    docker(&machine, &[&run[..], &[image.as_str(), "sh", "-c", server]].concat());
    eventually("it serves", async || served(&machine, "127.0.0.1:8080") == "web").await;
    assert_eq!(route(&machine), "10.90.2.1 dev eth0");
    let serves = || assert_eq!(served(&machine, "127.0.0.1:8080"), "web");
    // The first by name, where no priority says otherwise.
    docker(&machine, &["network", "connect", "high", "web"]);
    assert_eq!(route(&machine), "10.90.1.1 dev eth1");
    serves();
    docker(&machine, &["network", "connect", "closed", "web"]);
    assert_eq!(route(&machine), "10.90.1.1 dev eth1");
    docker(&machine, &["network", "connect", "--gw-priority", "1", "bridge", "web"]);
    assert_eq!(route(&machine), "172.17.0.1 dev eth3");
    serves();
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(route(&machine), "172.17.0.1 dev eth3");
    docker(&machine, &["network", "disconnect", "bridge", "web"]);
    assert_eq!(route(&machine), "10.90.1.1 dev eth1");
    serves();
    docker(&machine, &["network", "disconnect", "high", "web"]);
    assert_eq!(route(&machine), "10.90.2.1 dev eth0");
    serves();
    docker(&machine, &["network", "disconnect", "low", "web"]);
    assert_eq!((route(&machine).as_str(), served(&machine, "127.0.0.1:8080").as_str()), ("", ""));
    docker(&machine, &["network", "connect", "low", "web"]);
    assert_eq!(route(&machine), "10.90.2.1 dev eth0");
    serves();
    engine.post("/containers/web/restart?t=0", Value::Null).await;
    eventually("it serves again", async || served(&machine, "127.0.0.1:8080") == "web").await;
    let networks = engine.inspect("web").await["NetworkSettings"]["Networks"].clone();
    assert_eq!(networks.as_object().map(serde_json::Map::len), Some(2), "{networks}");
    engine.remove("web").await;
    for name in ["high", "low", "closed"] {
        docker(&machine, &["network", "rm", name]);
    }
    assert_eq!(engine.get("/containers/json?all=1").await, json!([]));
    machine.assert_clean().await;
}
