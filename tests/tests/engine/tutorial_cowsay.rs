//! The cowsay image of a tutorial: written by hand and committed, then from a Dockerfile, with and
//! without a program for an entry point.

use std::fs;

use berth_tests::{Capability, FakeRegistry, debian, skip_without};

use crate::{ready, succeed};

const SCRIPT: &str = r#"#!/bin/bash
if [ $# -eq 0 ]; then
    /usr/games/fortune | /usr/games/cowsay
else
    /usr/games/cowsay "$@"
fi
"#;

const COW: &str = r"        \   ^__^
         \  (oo)\_______
            (__)\       )\/\
                ||----w |
                ||     ||";

#[tokio::test]
async fn a_cow_speaks_from_a_container_and_from_images() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/debian", debian::debian())]);
    let context = machine.path("cowsay");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("packages.tar"), debian::cowsay()).unwrap();
    fs::write(context.join("entrypoint.sh"), SCRIPT).unwrap();

    // By hand. What apt-get would install comes by `docker cp`.
    let installed = machine.docker_script(
        "docker run --name cowsay --hostname cowsay -d debian sleep 1000 >/dev/null
         docker cp - cowsay:/ < cowsay/packages.tar
         docker exec cowsay /usr/games/cowsay Moo
         docker diff cowsay | grep -c 'A /usr/games/'
         docker commit -m 'A cow' -a 'A farmer' cowsay test/cowsayimage",
    );
    assert!(installed.contains("< Moo >") && installed.contains(COW), "{installed}");
    assert!(installed.contains("\n2\nsha256:"), "{installed}");
    let said = succeed(&machine, &["run", "--rm", "test/cowsayimage", "/usr/games/cowsay", "Moo"]);
    assert!(said.ends_with(COW), "{said}");
    assert!(machine.docker_script("docker history test/cowsayimage").contains("A cow"));

    // From Dockerfiles.
    let dockerfile = "FROM debian\nMAINTAINER A farmer <farmer@example.com>\n\
         # Packages of Debian.\nADD packages.tar /\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let built = machine.docker_script("cd cowsay; docker build -t test/cowsay-dockerfile .");
    for line in [
        "Sending build context to Docker daemon",
        "Step 1/3 : FROM debian",
        "Successfully tagged test/cowsay-dockerfile:latest",
    ] {
        assert!(built.contains(line), "{line}: {built}");
    }
    let said =
        machine.docker_script("docker run --rm test/cowsay-dockerfile /usr/games/cowsay Moo");
    assert!(said.ends_with(COW), "{said}");
    fs::write(
        context.join("Dockerfile"),
        format!("{dockerfile}ENTRYPOINT [\"/usr/games/cowsay\"]\n"),
    )
    .unwrap();
    let said = machine.docker_script(
        "cd cowsay; docker build -q -t test/cowsay-dockerfile . >/dev/null
         docker run --rm test/cowsay-dockerfile Moo",
    );
    assert!(said.contains("< Moo >"), "{said}");
    let program = format!("{dockerfile}COPY entrypoint.sh /\nENTRYPOINT [\"/entrypoint.sh\"]\n");
    fs::write(context.join("Dockerfile"), program).unwrap();
    let said = machine.docker_script(
        "cd cowsay; chmod +x entrypoint.sh; docker build -t test/cowsay-dockerfile . >/dev/null
         docker run --rm test/cowsay-dockerfile
         docker run --rm test/cowsay-dockerfile Hello Moo
         docker run --rm --entrypoint /usr/games/fortune test/cowsay-dockerfile >/dev/null",
    );
    assert_eq!(said.matches(COW).count(), 2, "{said}");
    assert!(said.contains("< Hello Moo >"), "{said}");

    // The second has lost its name; the first is a step of all.
    let dangling = machine.docker_script("docker images -q -f dangling=true | wc -l");
    assert_eq!(dangling, "1");
    machine.docker_script(
        "docker rm -f cowsay; docker image prune -f; docker rmi -f $(docker images -q)",
    );
    assert_eq!(machine.docker_script("docker images -qa"), "");
    machine.assert_clean().await;
}
