//! Networks with IPv6, beside IPv4 or alone, and where ports are published by the families that there are.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use berth_tests::{Capability, Machine, eventually, skip_without};

use crate::{fail, ready, succeed};

/// What a port of the machine answers with; nothing where the connection is refused.
fn ask(machine: &Machine, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    machine.in_network(|| {
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.read_to_string(&mut text).unwrap();
        }
        text.trim().to_owned()
    })
}

#[tokio::test]
async fn ports_are_published_in_the_families_of_a_network() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    // Answers with its name, from now on at this address.
    let serve = async |name: &str, network: &str, publish: &[&str], at: &str| {
        let program = ["nc", "-ll", "-p", "80", "-e", "echo", name];
        let options = ["run", "-d", "--name", name, "--network", network];
        succeed(&machine, &[&options, publish, &[&image], &program].concat());
        eventually("it serves", async || ask(&machine, at) == name).await;
    };
    let subnets = ["--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64"];
    succeed(&machine, &[&["network", "create"], &subnets[..], &["both"]].concat());
    serve("dual", "both", &["-p", "80", "-p", "[fd00:77::1]:8081:80"], "[fd00:77::1]:8081").await;
    let ports = engine.inspect("dual").await["NetworkSettings"]["Ports"]["80/tcp"].clone();
    let at = |index: usize| ports[index]["HostIp"].as_str().unwrap().to_owned();
    assert_eq!([at(0), at(1), at(2)], ["fd00:77::1", "0.0.0.0", "::"], "{ports}");
    let number = ports[1]["HostPort"].as_str().unwrap();
    assert_eq!(ports[2]["HostPort"], number, "both families have the same port");
    for host in ["127.0.0.1", "[fd00:77::1]"] {
        assert_eq!(ask(&machine, &format!("{host}:{number}")), "dual", "{host}");
    }
    assert_eq!(ask(&machine, "10.77.0.1:8081"), "", "a port of one address is of that one only");

    // Without IPv4.
    let created = ["network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd00:78::/64"];
    succeed(&machine, &[&created[..], &["six"]].concat());
    let network = engine.get("/networks/six").await;
    assert_eq!((&network["EnableIPv4"], &network["EnableIPv6"]), (&false.into(), &true.into()));
    serve("alone", "six", &["-p", "8082:80"], "[fd00:78::1]:8082").await;
    let settings = engine.inspect("alone").await["NetworkSettings"]["Networks"]["six"].clone();
    assert_eq!(
        (settings["IPAddress"].as_str(), settings["IPPrefixLen"].as_u64()),
        (Some(""), Some(0))
    );
    assert_eq!(settings["GlobalIPv6Address"], "fd00:78::2");
    let links = succeed(&machine, &["exec", "alone", "ip", "-4", "-o", "addr", "show", "eth0"]);
    assert_eq!(links, "");
    let answer =
        succeed(&machine, &["run", "--rm", "--network", "six", &image, "nc", "alone", "80"]);
    assert_eq!(answer, "alone", "names are of the family that there is");
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(ask(&machine, "[fd00:78::1]:8082"), "alone");

    // An address of the host that a network has for its ports.
    let binding = "com.docker.network.bridge.host_binding_ipv4=127.0.0.1";
    succeed(&machine, &["network", "create", "-o", binding, "--subnet", "10.77.9.0/24", "local"]);
    serve("near", "local", &["-p", "8083:80"], "127.0.0.1:8083").await;
    assert_eq!(ask(&machine, "10.77.9.1:8083"), "");

    // What cannot be is told.
    for (publish, what) in [
        ("[::1]:8084:80", "connections to it do not leave the host"),
        ("[fd00:77::1]:8084:80", "the container is on no network of that family"),
    ] {
        let said = fail(&machine, &["run", "--rm", "-p", publish, &image, "true"]);
        assert!(said.contains(what), "{publish}: {said}");
    }
    let said = fail(&machine, &["network", "create", "--ipv4=false", "none4"]);
    assert!(said.contains("IPv4 or IPv6 must be enabled"), "{said}");
    succeed(&machine, &["rm", "-f", "dual", "alone", "near"]);
    succeed(&machine, &["network", "rm", "both", "six", "local"]);
    machine.assert_clean().await;
}
