//! docker0, none, container:X, ports of the host, links, and what `/networks` says of all this.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use berth_proto::v1;
use berth_tests::{Capability, Engine, Machine, container, eventually, pod, skip_without};
use serde_json::{Value, json};

use crate::{ready, ready_with_cri};

/// What is served there, as seen from the machine; nothing if nobody answers.
pub(crate) fn served(machine: &Machine, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    machine.in_network(|| {
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
            let _ = stream.read_to_string(&mut text);
        }
        text.trim().to_owned()
    })
}

/// A container that answers with its name on port 80.
fn server(image: &str, name: &str, host_config: Value) -> Value {
    let script = format!("exec nc -ll -p 80 -e echo {name}");
    json!({
        "Image": image,
        "Cmd": ["sh", "-c", script],
        // Only what is exposed is published, as with dockerd.
        "ExposedPorts": { "80/tcp": {} },
        "HostConfig": host_config,
    })
}

/// Runs a script in a container of its own, and returns what it writes.
async fn output(machine: &Machine, image: &str, options: &[&str], script: &str) -> String {
    let mut arguments = vec!["run", "--rm"];
    arguments.extend(options);
    arguments.extend([image, "sh", "-c", script]);
    let output = machine.docker(&arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

async fn start_fails(engine: &Engine, name: &str) -> (u16, String) {
    let path = format!("/containers/{name}/start");
    let (status, answer) = engine.request("POST", &path, None).await;
    (status, answer["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn containers_reach_one_another_on_docker0() {
    let (machine, daemon, engine, image) = ready().await;
    let id = engine.create("web", server(&image, "web", json!({}))).await;
    assert_eq!(
        engine.inspect("web").await["NetworkSettings"]["Networks"]["bridge"]["NetworkID"],
        ""
    );
    engine.start("web").await;
    let settings = engine.inspect("web").await["NetworkSettings"].clone();
    assert_eq!(
        (&settings["IPAddress"], &settings["IPPrefixLen"], &settings["Gateway"]),
        (&json!("172.17.0.2"), &json!(16), &json!("172.17.0.1"))
    );
    let endpoint = &settings["Networks"]["bridge"];
    for key in ["EndpointID", "IPAddress", "MacAddress"] {
        assert_eq!(endpoint[key], settings[key], "{key}");
    }
    assert_eq!(settings["EndpointID"].as_str().unwrap().len(), 64);
    let network = engine.get("/networks/bridge").await;
    assert_eq!(network["Id"], endpoint["NetworkID"]);
    assert_eq!(network["Containers"][&id]["IPv4Address"], "172.17.0.2/16");
    // From the machine, and from a container that has the next address.
    eventually("web serves", async || served(&machine, "172.17.0.2:80") == "web").await;
    let script = "nc 172.17.0.2 80; ip addr show eth0; cat /etc/hosts /etc/hostname; hostname";
    engine
        .create("client", json!({ "Image": image, "Cmd": ["sh", "-c", script], "Hostname": "me" }))
        .await;
    engine.start("client").await;
    assert_eq!(engine.wait("client").await, 0);
    let log = std::fs::read_to_string(engine.inspect("client").await["LogPath"].as_str().unwrap());
    let log = log.unwrap();
    for wanted in ["web", "172.17.0.3/16", "172.17.0.3\tme"] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    // The next daemon knows the same of a run that goes on; the next run gets an address anew.
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(engine.inspect("web").await["NetworkSettings"], settings);
    assert_eq!(engine.get("/networks/bridge").await["Id"], network["Id"]);
    engine.post("/containers/web/restart?t=0", Value::Null).await;
    eventually("web serves again", async || served(&machine, "172.17.0.2:80") == "web").await;
    engine.remove("web").await;
    engine.remove("client").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_published_port_leads_to_its_container_and_belongs_to_nobody_else() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let ports = |port: &str| json!({ "PortBindings": { "80/tcp": [{ "HostPort": port }] } });
    engine.create("one", server(&image, "one", ports("8080"))).await;
    engine.start("one").await;
    for address in ["127.0.0.1:8080", "172.17.0.1:8080"] {
        eventually(address, async || served(&machine, address) == "one").await;
    }
    // Itself and others reach it by the host's address.
    let log = output(&machine, &image, &[], "nc 172.17.0.1 8080").await;
    assert_eq!(log.trim(), "one");
    let hairpin = machine.docker(&["exec", "one", "nc", "172.17.0.1", "8080"]);
    if hairpin.status.success() {
        assert_eq!(String::from_utf8_lossy(&hairpin.stdout).trim(), "one");
    }
    let shown = json!({ "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }] });
    assert_eq!(engine.inspect("one").await["NetworkSettings"]["Ports"], shown);
    let port = json!({ "IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp" });
    assert_eq!(engine.get("/containers/json").await[0]["Ports"], json!([port]));
    // The same port again: the container stays as it was created.
    engine.create("two", server(&image, "two", ports("8080"))).await;
    let (status, message) = start_fails(&engine, "two").await;
    assert_eq!(status, 500);
    assert!(
        message.starts_with(
            "failed to set up container networking: driver failed programming external \
             connectivity on endpoint two ("
        ) && message.ends_with("): Bind for 0.0.0.0:8080 failed: port is already allocated"),
        "{message}"
    );
    let two = engine.inspect("two").await;
    assert_eq!(two["State"]["Status"], "created");
    assert_eq!(two["NetworkSettings"]["Ports"], json!({}));
    engine.remove("one").await;
    engine.start("two").await;
    eventually("two serves", async || served(&machine, "127.0.0.1:8080") == "two").await;
    // A range, and any free port for what is exposed.
    engine.create("range", server(&image, "range", ports("8080-8081"))).await;
    engine.start("range").await;
    let mut all = server(&image, "all", json!({ "PublishAllPorts": true }));
    all["ExposedPorts"] = json!({ "80/tcp": {} });
    engine.create("all", all).await;
    engine.start("all").await;
    let of = async |name: &str| {
        let ports = engine.inspect(name).await["NetworkSettings"]["Ports"].clone();
        ports["80/tcp"][0]["HostPort"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("range").await, "8081");
    let any = of("all").await;
    assert!(any.parse::<u16>().unwrap() >= 32768, "{any}");
    eventually("all serves", async || served(&machine, &format!("127.0.0.1:{any}")) == "all").await;
    for name in ["two", "range", "all"] {
        engine.remove(name).await;
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_port_of_a_pod_or_of_a_program_is_not_taken() {
    let (machine, _daemon, engine, cri, image) = ready_with_cri().await;
    let mut config = pod(&machine, "p");
    config.port_mappings =
        vec![v1::PortMapping { host_port: 8080, container_port: 80, ..Default::default() }];
    let sandbox = cri.run_pod(config).await.unwrap();
    let ports = json!({ "PortBindings": { "80/tcp": [{ "HostPort": "8080" }] } });
    engine.create("pod", server(&image, "x", ports)).await;
    let (status, message) = start_fails(&engine, "pod").await;
    assert_eq!(status, 500);
    let taken = "Bind for 0.0.0.0:8080 failed: port is already allocated";
    assert!(message.ends_with(taken), "{message}");
    let _listener = machine.in_network(|| std::net::TcpListener::bind("0.0.0.0:8081").unwrap());
    let ports = json!({ "PortBindings": { "80/tcp": [{ "HostPort": "8081" }] } });
    engine.create("program", server(&image, "x", ports)).await;
    let (status, message) = start_fails(&engine, "program").await;
    assert_eq!(status, 500);
    assert!(message.contains("8081") && message.ends_with("address already in use"), "{message}");
    engine.remove("pod").await;
    engine.remove("program").await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn without_a_network_there_is_only_lo() {
    let (machine, _daemon, engine, image) = ready().await;
    let script = "ip -o link | wc -l; ip link show lo";
    let log = output(&machine, &image, &["--network", "none"], script).await;
    assert!(log.starts_with("1\n") && log.contains("UP"), "{log}");
    let body = json!({
        "Image": image,
        "Cmd": ["sleep", "1000"],
        "HostConfig": { "NetworkMode": "none" },
    });
    engine.create("none", body).await;
    engine.start("none").await;
    let settings = engine.inspect("none").await["NetworkSettings"].clone();
    assert_eq!((&settings["IPAddress"], &settings["EndpointID"]), (&json!(""), &json!("")));
    assert_eq!(settings["Networks"]["none"]["EndpointID"].as_str().unwrap().len(), 64);
    engine.remove("none").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_container_shares_the_network_of_another_and_keeps_lo() {
    let (machine, _daemon, engine, image) = ready().await;
    engine.create("first", server(&image, "first", json!({}))).await;
    let body = json!({
        "Image": image,
        "Cmd": ["sh", "-c", "while ip link show eth0; do sleep 0.1; done; ip -o link | wc -l"],
        "HostConfig": { "NetworkMode": "container:first" },
    });
    engine.create("second", body).await;
    let (_, message) = start_fails(&engine, "second").await;
    let refused = "cannot join network namespace of a non running container: container first is \
                   created";
    assert_eq!(message, refused);
    engine.start("first").await;
    engine.start("second").await;
    assert_eq!(engine.inspect("second").await["NetworkSettings"]["Networks"], json!({}));
    let script = "nc 127.0.0.1 80; hostname";
    let shared = output(&machine, &image, &["--network", "container:first"], script).await;
    let hostname = engine.inspect("first").await["Config"]["Hostname"].clone();
    assert_eq!(shared, format!("first\n{}\n", hostname.as_str().unwrap()));
    // The end of the first takes the interface, whose address the next one gets.
    engine.post("/containers/first/restart?t=0", Value::Null).await;
    assert_eq!(engine.wait("second").await, 0);
    eventually("first serves", async || served(&machine, "172.17.0.2:80") == "first").await;
    engine.remove("first").await;
    engine.remove("second").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_linked_container_has_a_name_and_variables() {
    let (machine, _daemon, engine, image) = ready().await;
    let mut redis = server(&image, "redis", json!({}));
    redis["ExposedPorts"] = json!({ "80/tcp": {} });
    let id = engine.create("myredis", redis).await;
    engine.start("myredis").await;
    let options = ["--link", "myredis:db", "--add-host", "foo:1.2.3.4", "--dns", "9.9.9.9"];
    let script = "cat /etc/hosts /etc/resolv.conf; env; nc db 80";
    let log = output(&machine, &image, &options, script).await;
    for wanted in [
        &format!("172.17.0.2\tdb {} myredis\n", &id[..12]),
        "1.2.3.4\tfoo\n",
        "nameserver 9.9.9.9\n",
        "DB_PORT=tcp://172.17.0.2:80\n",
        "\nredis\n",
    ] {
        assert!(log.contains(wanted), "{wanted:?}: {log}");
    }
    engine.remove("myredis").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn pods_and_containers_are_on_networks_of_their_own() {
    let (machine, _daemon, _engine, cri, image) = ready_with_cri().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let script = "exec nc -ll -p 80 -e echo pod";
    cri.run(&sandbox, container("server", &image, script)).await.unwrap();
    let address = cri.pod_status(&sandbox).await.unwrap().network.unwrap().ip;
    eventually("the pod serves", async || served(&machine, &format!("{address}:80")) == "pod")
        .await;
    let log = output(&machine, &image, &[], &format!("nc -w 1 {address} 80 || echo apart")).await;
    assert!(log.contains("apart"), "{log}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_predefined_networks_are_listed_and_stay() {
    let (machine, _daemon, engine, _image) = ready().await;
    let all = engine.get("/networks").await;
    let names: Vec<&str> =
        all.as_array().unwrap().iter().map(|one| one["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["none", "host", "bridge"]);
    let config = json!([{ "Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1" }]);
    assert_eq!(all[2]["IPAM"]["Config"], config);
    let custom = "/networks?filters=%7B%22type%22%3A%5B%22custom%22%5D%7D";
    assert_eq!(engine.get(custom).await, json!([]));
    for (method, path, body, status, message) in [
        ("GET", "/networks/nope", None, 404, "network nope not found"),
        (
            "DELETE",
            "/networks/bridge",
            None,
            403,
            "bridge is a pre-defined network and cannot be removed",
        ),
        (
            "POST",
            "/networks/create",
            Some(json!({ "Name": "host" })),
            403,
            "operation is not permitted on predefined host network ",
        ),
        ("POST", "/networks/create", Some(json!({})), 400, "invalid name: name is empty"),
    ] {
        let (answered, answer) = engine.request(method, path, body).await;
        assert_eq!((answered, &answer["message"]), (status, &json!(message)), "{method} {path}");
    }
    machine.assert_clean().await;
}
