//! The name server of containers on networks of users: who is found by what, what is passed on to whom,
//! and that it outlives the daemon, and its own death.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use berth_tests::{Capability, Engine, Machine, eventually, skip_without};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{ready, run, succeed};

/// A container that does nothing, on a network.
fn idle(machine: &Machine, image: &str, options: &[&str], name: &str) {
    let run = ["run", "-d", "--stop-signal", "KILL", "--name", name];
    succeed(machine, &[&run, options, &[image, "sleep", "1000"]].concat());
}

/// The addresses and names that `nslookup` is told in a container, in their order; empty for a failure.
fn look_up(machine: &Machine, container: &str, kind: &str, name: &str) -> Vec<String> {
    let kind = format!("-type={kind}");
    let output = machine.docker(&["exec", container, "nslookup", &kind, name, "127.0.0.11"]);
    if !output.status.success() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The first two lines speak of the server.
    let answers = text.lines().skip(2).filter_map(|line| {
        let address = line.strip_prefix("Address: ");
        address.or_else(|| line.split_once("name = ").map(|(_, name)| name))
    });
    answers.map(str::to_owned).collect()
}

async fn address(engine: &Engine, container: &str, network: &str, key: &str) -> String {
    let inspected = engine.inspect(container).await;
    inspected["NetworkSettings"]["Networks"][network][key].as_str().unwrap().to_owned()
}

/// A name server at this address of the machine that answers each question with one address.
fn resolver(machine: &Machine, address: &str, answer: Ipv4Addr) {
    let socket = machine.in_network(|| UdpSocket::bind((address, 53)).unwrap());
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query) {
            // The question ends with the name's last label, the type and the class; the rest is EDNS.
            let Some(name) = query[12..length].iter().position(|byte| *byte == 0) else { continue };
            let mut message = query[..12 + name + 5].to_vec();
            message[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
            message.extend(answer.octets());
            let _ = socket.send_to(&message, peer);
        }
    });
}

/// Removes containers and networks. Then nothing is left: no process, no file, no rule.
async fn clean_up(machine: &Machine, containers: &[&str], networks: &[&str]) {
    succeed(machine, &[&["rm", "-f"], containers].concat());
    succeed(machine, &[&["network", "rm"], networks].concat());
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_container_asks_for_the_names_of_its_networks() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "--ipv6", "--subnet", "fd00:77::/64", "net1"]);
    succeed(&machine, &["network", "create", "net2"]);
    idle(&machine, &image, &["--network", "net1", "--network-alias", "www"], "web");
    idle(&machine, &image, &["--network", "net1", "--network-alias", "www"], "web2");
    idle(&machine, &image, &["--network", "net2"], "far");
    idle(&machine, &image, &["--network", "net1", "--link", "web:store"], "asks");
    let web = address(&engine, "web", "net1", "IPAddress").await;
    let web2 = address(&engine, "web2", "net1", "IPAddress").await;
    for name in ["web", "WEB", "web.net1", "store"] {
        assert_eq!(look_up(&machine, "asks", "a", name), [web.as_str()], "{name}");
    }
    let six = address(&engine, "web", "net1", "GlobalIPv6Address").await;
    assert_eq!(look_up(&machine, "asks", "aaaa", "web"), [six.as_str()]);
    let turned: Vec<&str> = web.rsplit('.').collect();
    let name = format!("{}.in-addr.arpa", turned.join("."));
    assert_eq!(look_up(&machine, "asks", "ptr", &name), ["web.net1"]);
    // The links of one are nobody else's, and names not those of other networks.
    assert!(look_up(&machine, "web2", "a", "store").is_empty());
    assert!(look_up(&machine, "asks", "a", "far").is_empty());
    // Each of several is first in turn.
    let mut first = Vec::new();
    for _ in 0..2 {
        let found = look_up(&machine, "asks", "a", "www");
        assert!(found.contains(&web) && found.contains(&web2), "{found:?}");
        first.push(found[0].clone());
    }
    assert_ne!(first[0], first[1]);
    // From the first instruction, by its own name too, and by whatever the system's resolver says.
    let script = "nslookup -type=a web && nslookup -type=a me";
    let text = run(&machine, &["--network", "net1", "--name", "me"], &image, script);
    assert!(text.contains(&format!("Address: {web}")), "{text}");
    let options = ["--network", "net1", "--dns-search", "corp.test"];
    let text = run(&machine, &options, &image, "cat /etc/resolv.conf");
    for wanted in [
        "nameserver 127.0.0.11\nsearch corp.test\n",
        "ndots:0",
        "(internal resolver)",
        "# Overrides: [search]\n",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let text = run(&machine, &[], &image, "cat /etc/resolv.conf");
    assert!(!text.contains("127.0.0.11") && text.contains("(legacy)"), "{text}");
    // Other names of those that run, and networks that they come to.
    succeed(&machine, &["rename", "web", "moved"]);
    assert_eq!(look_up(&machine, "asks", "a", "moved"), [web.as_str()]);
    assert!(look_up(&machine, "asks", "a", "web").is_empty());
    succeed(&machine, &["network", "connect", "--alias", "near", "net1", "far"]);
    let near = address(&engine, "far", "net1", "IPAddress").await;
    assert_eq!(look_up(&machine, "asks", "a", "near"), [near.as_str()]);
    assert_eq!(look_up(&machine, "far", "a", "moved"), [web.as_str()]);
    succeed(&machine, &["network", "disconnect", "net1", "far"]);
    assert!(look_up(&machine, "asks", "a", "near").is_empty());
    succeed(&machine, &["rm", "-f", "web2"]);
    assert_eq!(look_up(&machine, "asks", "a", "www"), [web.as_str()]);
    clean_up(&machine, &["moved", "far", "asks"], &["net1", "net2"]).await;
}

#[tokio::test]
async fn a_container_of_docker0_that_comes_to_a_network_is_served_unless_it_has_files_of_its_own() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "net1"]);
    idle(&machine, &image, &["--network", "net1"], "web");
    let web = address(&engine, "web", "net1", "IPAddress").await;
    for name in ["plain", "own"] {
        idle(&machine, &image, &[], name);
    }
    let script = "echo nameserver 192.0.2.7 > /etc/resolv.conf";
    succeed(&machine, &["exec", "own", "sh", "-c", script]);
    for name in ["plain", "own"] {
        succeed(&machine, &["network", "connect", "net1", name]);
        assert_eq!(look_up(&machine, name, "a", "web"), [web.as_str()], "{name}");
    }
    let resolv_conf = |name: &str| succeed(&machine, &["exec", name, "cat", "/etc/resolv.conf"]);
    assert!(resolv_conf("plain").contains("nameserver 127.0.0.11\n"));
    assert_eq!(resolv_conf("own"), "nameserver 192.0.2.7");
    // What its resolv.conf names goes on to answer.
    succeed(&machine, &["network", "disconnect", "net1", "plain"]);
    assert!(look_up(&machine, "plain", "a", "web").is_empty());
    succeed(&machine, &["network", "connect", "net1", "plain"]);
    assert_eq!(look_up(&machine, "plain", "a", "web"), [web.as_str()]);
    clean_up(&machine, &["web", "plain", "own"], &["net1"]).await;
}

#[tokio::test]
async fn other_names_are_asked_of_the_resolvers_that_a_container_has() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let of_host = machine.path("resolv.conf");
    fs::write(&of_host, "nameserver 127.0.0.77\nsearch host.test\n").unwrap();
    let of_host = of_host.to_str().unwrap();
    machine.output("mount", &["--bind", of_host, "/etc/resolv.conf"]);
    // One that only the host reaches, and one that the container itself does.
    resolver(&machine, "127.0.0.77", [192, 0, 2, 77].into());
    succeed(&machine, &["network", "create", "--subnet", "10.77.6.0/24", "net1"]);
    succeed(&machine, &["network", "create", "--internal", "in"]);
    resolver(&machine, "10.77.6.1", [192, 0, 2, 1].into());
    idle(&machine, &image, &["--network", "net1"], "host");
    idle(&machine, &image, &["--network", "net1", "--dns", "10.77.6.1"], "dns");
    idle(&machine, &image, &["--network", "in"], "inside");
    assert_eq!(look_up(&machine, "host", "a", "example.org"), ["192.0.2.77"]);
    assert_eq!(look_up(&machine, "dns", "a", "example.org"), ["192.0.2.1"]);
    assert!(look_up(&machine, "inside", "a", "example.org").is_empty());
    let own = address(&engine, "inside", "in", "IPAddress").await;
    assert_eq!(look_up(&machine, "inside", "a", "inside"), [own.as_str()]);
    for (name, wanted) in
        [("host", "# ExtServers: [host(127.0.0.77)]"), ("dns", "# ExtServers: [10.77.6.1]")]
    {
        let text = succeed(&machine, &["exec", name, "cat", "/etc/resolv.conf"]);
        assert!(text.contains(wanted) && text.contains("search host.test"), "{text}");
    }
    machine.output("umount", &["/etc/resolv.conf"]);
    clean_up(&machine, &["host", "dns", "inside"], &["net1", "in"]).await;
}

#[tokio::test]
async fn names_are_there_while_the_daemon_is_not_and_after_the_server_was_killed() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "net1"]);
    idle(&machine, &image, &["--network", "net1"], "web");
    idle(&machine, &image, &["--network", "net1"], "asks");
    let web: Ipv4Addr = address(&engine, "web", "net1", "IPAddress").await.parse().unwrap();
    let inspected = engine.inspect("asks").await;
    let key = inspected["NetworkSettings"]["SandboxKey"].as_str().unwrap();
    let netns = key.rsplit('/').next().unwrap().to_owned();
    let servers = machine.name_servers();
    assert_eq!(servers.len(), 1, "{servers:?}");
    daemon.kill();
    // Without a daemon there is no exec.
    assert_eq!(ask_in_netns(&machine, &netns, "web"), Some(web));
    let _daemon = machine.start().await;
    assert_eq!(machine.name_servers(), servers, "it goes on");
    assert_eq!(look_up(&machine, "asks", "a", "web"), [web.to_string()]);
    // The daemon that has not started it hears of its death as well; and so does the one that has.
    for _ in 0..2 {
        let (pid, _) = machine.name_servers()[0].clone();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("it is started again", async || {
            let servers = machine.name_servers();
            servers.len() == 1
                && servers[0].0 != pid
                && look_up(&machine, "asks", "a", "web") == [web.to_string()]
        })
        .await;
    }
    idle(&machine, &image, &["--network", "net1"], "later");
    assert_eq!(look_up(&machine, "asks", "a", "later").len(), 1);
    // A container that ends while the daemon is dead is gone after that.
    succeed(&machine, &["kill", "web"]);
    assert!(look_up(&machine, "asks", "a", "web").is_empty());
    clean_up(&machine, &["web", "asks", "later"], &["net1"]).await;
}

/// The IPv4 address of a name, as the server says in the namespace of a container.
fn ask_in_netns(machine: &Machine, netns: &str, name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    query.extend(name.as_bytes());
    query.extend([0, 0, 1, 0, 1]);
    machine.in_netns(netns, || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&query, "127.0.0.11:53").unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap();
        // The last bytes of the only record.
        let found = answer[7] == 1;
        let octets: [u8; 4] = answer[length - 4..length].try_into().unwrap();
        found.then(|| octets.into())
    })
}

#[tokio::test]
async fn a_container_may_be_a_name_server_and_send_whatever_it_likes() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    succeed(&machine, &["network", "create", "net1"]);
    let serve = ["run", "-d", "--stop-signal", "KILL", "--name", "own", "--network", "net1"];
    let script = "nc -ll -u -p 53 -e echo me & exec nc -ll -p 53 -e echo me";
    succeed(&machine, &[&serve[..], &[&image, "sh", "-c", script]].concat());
    let own = address(&engine, "own", "net1", "IPAddress").await;
    assert_eq!(look_up(&machine, "own", "a", "own"), [own.as_str()]);
    let asked = run(&machine, &["--network", "net1"], &image, "nc -w 2 own 53 </dev/null");
    assert_eq!(asked, "me");
    idle(&machine, &image, &["--network", "net1"], "bad");
    let servers = machine.name_servers();
    let junk = "for n in $(seq 200); do head -c $((n * 7)) /dev/urandom | nc -u -w 0 127.0.0.11 53 & done
        for n in $(seq 40); do head -c 3000 /dev/urandom | nc -w 1 127.0.0.11 53 >/dev/null & done; wait";
    succeed(&machine, &["exec", "bad", "sh", "-c", junk]);
    for name in ["own", "bad"] {
        assert_eq!(look_up(&machine, name, "a", "own"), [own.as_str()], "{name}");
    }
    assert_eq!(machine.name_servers(), servers, "nothing ends it");
    clean_up(&machine, &["own", "bad"], &["net1"]).await;
}
