//! What a tutorial does with redis: a server, a client that is linked with it, a backup of its volume,
//! and a page before it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use berth_tests::{Capability, FakeRegistry, debian, eventually, skip_without};

use crate::{ready, succeed};

#[tokio::test]
async fn redis_is_linked_and_its_volume_is_backed_up() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let images = vec![("library/redis", debian::redis()), ("library/debian", debian::debian())];
    let _hub = FakeRegistry::hub(&machine, images);
    let id = machine.docker_script("docker run --name myredis -d redis");
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    eventually("redis", async || {
        machine.docker(&["exec", "myredis", "redis-cli", "ping"]).stdout == b"PONG\n"
    })
    .await;
    let address =
        succeed(&machine, &["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "myredis"]);

    // A client by the name of the link.
    let link = "docker run --rm --link myredis:redis-cli debian";
    let hosts = machine.docker_script(&format!("{link} cat /etc/hosts"));
    assert!(hosts.contains(&format!("{address}\tredis-cli ")), "{hosts}");
    let asked = machine
        .docker_script(&format!("{link} sh -c \"printf 'PING\\r\\n' | nc -w 1 redis-cli 6379\""));
    assert_eq!(asked.trim(), "+PONG");
    let client = "docker run --rm --link myredis:redis redis redis-cli -h redis";
    assert_eq!(machine.docker_script(&format!("{client} set attendees 42")), "OK");
    assert_eq!(machine.docker_script(&format!("{client} get attendees")), "42");

    // The backup, and what it is good for.
    let backup = "docker run --rm --volumes-from myredis -v $(pwd)/backup:/backup debian";
    machine.docker_script(&format!("{client} save; {backup} cp /data/dump.rdb /backup/"));
    assert!(fs::read(machine.path("backup/dump.rdb")).unwrap().starts_with(b"REDIS"));
    machine.docker_script("docker stop myredis; docker rm -v myredis");
    let restored = machine.docker_script(
        "docker run --name myredis -d -v $(pwd)/backup:/data redis >/dev/null
         until docker exec myredis redis-cli ping 2>/dev/null | grep -q PONG; do :; done
         docker exec myredis redis-cli get attendees",
    );
    assert_eq!(restored, "42");
    assert!(machine.docker_script("docker logs myredis").contains("Ready to accept connections"));
    // It ends by SIGTERM, within the time it is given, and saves.
    machine.docker_script("docker stop myredis");
    let logs = machine.docker_script("docker logs myredis");
    assert!(logs.contains("Redis is now ready to exit, bye bye..."), "{logs}");
    let state = succeed(&machine, &["inspect", "--format", "{{.State.ExitCode}}", "myredis"]);
    assert_eq!(state, "0");
    machine.docker_script("docker rm -v myredis");
    assert_eq!(machine.docker_script("docker volume ls -q; docker ps -aq"), "");
    machine.assert_clean().await;
}

/// What a client of a port of the machine gets.
fn fetch(address: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}

#[tokio::test]
async fn a_page_is_served_through_a_published_port() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/nginx", debian::nginx())]);
    machine.docker_script(
        "mkdir site; echo '<h1>mine</h1>' > site/index.html
         docker run -d --name web -p 8080:80 -v $(pwd)/site:/usr/share/nginx/html:ro nginx
         docker run -d --name other -P nginx",
    );
    let ports =
        machine.docker_script("docker port web; docker ps -f name=web --format '{{.Ports}}'");
    for shown in ["80/tcp -> 0.0.0.0:8080", "0.0.0.0:8080->80/tcp"] {
        assert!(ports.contains(shown), "{ports}");
    }
    let port = machine.docker_script("docker port other 80/tcp | head -1");
    let get = |address: &str| machine.in_network(|| fetch(address));
    eventually("the page", async || get("127.0.0.1:8080").ends_with("<h1>mine</h1>\n")).await;
    let number = port.rsplit_once(':').unwrap().1;
    assert!(number.parse::<u16>().unwrap() >= 32768, "{port}");
    let address = format!("127.0.0.1:{number}");
    eventually("the other", async || get(&address).contains("Welcome to nginx!")).await;
    // The pages are the host's, which nobody in the container can change.
    machine.docker_script("echo new > site/index.html");
    assert!(get("127.0.0.1:8080").ends_with("new\n"));
    let written = machine.docker(&["exec", "web", "touch", "/usr/share/nginx/html/no"]);
    assert!(String::from_utf8_lossy(&written.stderr).contains("Read-only file system"));
    assert!(machine.docker_script("docker logs web").contains("GET / HTTP/1.0"));
    let top = machine.docker_script("docker top web");
    assert!(top.starts_with("UID ") && top.contains("nginx: worker process"), "{top}");
    machine.docker_script("docker restart web");
    eventually("the page", async || get("127.0.0.1:8080").ends_with("new\n")).await;
    machine.docker_script("docker stop $(docker ps -q); docker rm $(docker ps -aq)");
    machine.assert_clean().await;
}
