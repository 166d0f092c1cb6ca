//! A private registry: the registry's own image, run by the daemon that then pushes to it and pulls
//! from it.

use berth_tests::{Capability, FakeRegistry, debian, eventually, skip_without};

use crate::{fail, ready, succeed};

#[tokio::test]
async fn a_registry_runs_as_a_container_and_keeps_what_is_pushed_to_it() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, _engine, _) = ready().await;
    let images =
        vec![("library/registry", debian::registry()), ("library/debian", debian::debian())];
    let hub = FakeRegistry::hub(&machine, images);
    machine.docker_script(
        "docker run -d -p 5000:5000 --restart=always --name registry \
         -v $(pwd)/kept:/var/lib/registry registry:2",
    );
    let is_there =
        async || machine.in_network(|| std::net::TcpStream::connect("127.0.0.1:5000")).is_ok();
    eventually("the registry", is_there).await;
    let id = machine.docker_script(
        "docker pull -q debian >/dev/null
         docker tag debian localhost:5000/my-debian
         docker images --no-trunc -q localhost:5000/my-debian",
    );
    let pushed = machine.docker_script("docker push localhost:5000/my-debian");
    assert!(
        pushed.starts_with(
            "Using default tag: latest\nThe push refers to repository [localhost:5000/my-debian]"
        ),
        "{pushed}"
    );
    assert!(pushed.contains("latest: digest: sha256:"), "{pushed}");
    let again = machine.docker_script("docker push localhost:5000/my-debian");
    assert!(again.contains("Layer already exists"), "{again}");

    let asked = hub.requests().len();
    let pulled = machine.docker_script(
        "docker image rm debian localhost:5000/my-debian >/dev/null
         docker pull localhost:5000/my-debian",
    );
    assert!(
        pulled.contains("Status: Downloaded newer image for localhost:5000/my-debian:latest"),
        "{pulled}"
    );
    assert_eq!(succeed(&machine, &["images", "--no-trunc", "-q", "localhost:5000/my-debian"]), id);
    assert_eq!(hub.requests().len(), asked, "docker.io is not asked");
    let said = succeed(&machine, &["run", "--rm", "localhost:5000/my-debian", "echo", "from mine"]);
    assert_eq!(said, "from mine");

    // The policy brings it back, with what it keeps, also where the daemon was killed meanwhile.
    daemon.kill();
    let _daemon = machine.start().await;
    machine.docker_script("docker kill registry >/dev/null; docker start registry");
    eventually("the registry", is_there).await;
    machine
        .docker_script("docker rmi localhost:5000/my-debian; docker pull localhost:5000/my-debian");
    machine.docker_script("docker container stop registry && docker container rm -v registry");
    let refused = fail(&machine, &["pull", "localhost:5000/other"]);
    assert!(refused.contains("onnection refused"), "{refused}");
    machine.assert_clean().await;
}
