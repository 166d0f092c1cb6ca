//! What tutorials do with networks: those that are there, one of their own, and sharing another
//! container's.

use berth_tests::{Capability, FakeRegistry, debian, skip_without};

use crate::{fail, ready};

#[tokio::test]
async fn containers_are_on_the_networks_that_are_asked_for() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/debian", debian::debian())]);
    let listed = machine.docker_script("docker network ls --format '{{.Name}} {{.Driver}}' | sort");
    assert_eq!(listed, "bridge bridge\nhost host\nnone null");
    let subnet = machine.docker_script(
        "docker network inspect bridge -f '{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}'",
    );
    assert_eq!(subnet, "172.17.0.0/16 172.17.0.1");
    machine.docker_script("docker pull -q debian");

    let warned =
        machine.docker(&["run", "--rm", "--network", "host", "-p", "8083:8080", "debian", "true"]);
    let warned = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(
        warned.contains("WARNING: Published ports are discarded when using host network mode"),
        "{warned}"
    );
    let links = machine.docker_script("docker run --rm --network none debian ip -o link | wc -l");
    assert_eq!(links, "1");

    // By address only on the default network, by name on one's own.
    let reached = machine.docker_script(
        "docker run -d --name one debian sleep 1000 >/dev/null
         address=$(docker inspect -f '{{.NetworkSettings.IPAddress}}' one)
         docker run --rm debian ping -c 1 -W 2 $address | grep -c '1 packets received'
         docker run --rm debian ping -c 1 -W 2 one 2>&1 || true",
    );
    assert_eq!(reached, "1\nping: bad address 'one'");
    let reached = machine.docker_script(
        "docker network create my_network >/dev/null
         docker run -d --name two --network my_network debian sleep 1000 >/dev/null
         docker run --rm --network my_network debian ping -c 1 -W 2 two | grep -c '1 packets received'
         docker network connect my_network one
         docker exec one ping -c 1 -W 2 two | grep -c '1 packets received'
         docker exec two ping -c 1 -W 2 one | grep -c '1 packets received'
         docker network inspect my_network -f '{{len .Containers}}'
         docker network disconnect my_network one
         docker network inspect my_network -f '{{len .Containers}}'",
    );
    assert_eq!(reached, "1\n1\n1\n2\n1");
    let refused = fail(&machine, &["network", "rm", "my_network"]);
    assert!(refused.contains("has active endpoints"), "{refused}");

    // Shared with another container, which takes it along when it stops.
    let shared = machine.docker_script(
        "docker run -d --name alpine1 debian sleep 1000 >/dev/null
         docker run -d --name alpine2 --network container:alpine1 debian sleep 1000 >/dev/null
         docker exec alpine1 ip -o -4 addr show eth0 > a; docker exec alpine2 ip -o -4 addr show eth0 > b
         cmp a b; docker stop -t 0 alpine1 >/dev/null
         docker exec alpine2 ip -o link | wc -l
         docker start alpine1 >/dev/null; docker restart -t 0 alpine2 >/dev/null
         docker exec alpine2 ip -o link | wc -l",
    );
    assert_eq!(shared, "1\n2");
    machine.docker_script("docker rm -f $(docker ps -aq); docker network prune -f");
    assert_eq!(machine.docker_script("docker network ls -q | wc -l"), "3");
    machine.assert_clean().await;
}
