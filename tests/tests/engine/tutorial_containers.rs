//! The verbs of containers, as tutorials use them one after the other: run in its forms, what is listed
//! and shown, and the ways to the end.

use std::fs;

use berth_tests::{Capability, FakeRegistry, Machine, debian, skip_without};

use crate::{fail, ready, succeed};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn containers_are_run_listed_and_looked_into() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/debian", debian::debian())]);
    for (line, shown) in [
        ("version", "Server:"),
        ("info", " Storage Driver: overlay2\n"),
        ("--help", "Usage:  docker [OPTIONS] COMMAND"),
        ("run --help", "Usage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]"),
    ] {
        let printed = machine.docker_script(&format!("docker {line}"));
        assert!(printed.contains(shown), "{line}: {printed}");
    }

    // The first run pulls.
    let first = machine.docker(&["run", "debian", "echo", "Hello World"]);
    let said = text(&first.stderr);
    for line in [
        "Unable to find image 'debian:latest' locally",
        "latest: Pulling from library/debian",
        "Status: Downloaded newer image for debian:latest",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(first.stdout, b"Hello World\n");
    let names = machine.docker_script("docker ps -l --format '{{.Names}} {{.Status}}'");
    let (name, status) = names.split_once(' ').unwrap();
    assert!(name.split('_').count() == 2 && status.starts_with("Exited (0) "), "{names}");

    // A shell on a terminal: its prompt has the first twelve of the id.
    let shell = machine.on_terminal("run -it --name shell debian /bin/bash", b"hostname\rexit 3\r");
    assert_eq!(shell.status.code(), Some(3), "{shell:?}");
    let id = machine.docker_script("docker inspect -f '{{.Id}}' shell");
    let screen = text(&shell.stdout);
    assert!(screen.contains(&format!("root@{}:/# ", &id[..12])), "{screen}");
    assert_eq!(screen.matches(&id[..12]).count(), 3, "two prompts and a name: {screen}");
    let logs = machine.docker_script("docker logs shell");
    assert!(logs.contains("hostname\r\n"), "{logs}");
    let named = machine.on_terminal("run --rm -it -h CONTAINER debian hostname", b"");
    assert_eq!(text(&named.stdout).trim(), "CONTAINER");

    // Two shells in one container, and the keys that leave it.
    machine.docker_script("docker run -dit --name box debian bash");
    let exec = machine.on_terminal("exec -it box bash", b"echo in > /seen; exit\r");
    assert_eq!(exec.status.code(), Some(0), "{exec:?}");
    machine.on_terminal("attach box", b"\x10\x11");
    assert_eq!(machine.docker_script("docker exec box cat /seen"), "in");
    machine.on_terminal("attach box", b"exit\r");
    let state =
        machine.docker_script("docker wait box; docker ps -a -f name=box --format '{{.State}}'");
    assert_eq!(state, "0\nexited");

    // What is shown of them.
    let columns = "CONTAINER ID   IMAGE     COMMAND ";
    assert!(machine.docker_script("docker ps").starts_with(columns));
    assert_eq!(machine.docker_script("docker ps -q"), "");
    let counts = machine.docker_script(
        "docker ps -aq | wc -l; docker ps -n 2 -q | wc -l; docker ps -lq | wc -l
         docker ps -all -q | wc -l; docker ps -aq -f status=exited | wc -l
         docker ps -aq -f status=running | wc -l",
    );
    assert_eq!(counts, "3\n2\n1\n1\n3\n0");
    let inspected = machine.docker_script("docker start box >/dev/null; docker inspect box");
    for field in ["Id", "Created", "Path", "Args", "State", "ResolvConfPath", "HostnamePath"] {
        assert!(inspected.contains(&format!("        \"{field}\": ")), "{field}: {inspected}");
    }
    let address = machine.docker_script(
        "docker inspect box | grep -c SecondaryIPAddresses
         docker inspect --format {{.NetworkSettings.IPAddress}} box",
    );
    assert!(address.starts_with("1\n172.17.0."), "{address}");
    let top = machine.docker_script("docker top box");
    assert!(top.starts_with("UID                 PID                 PPID  "), "{top}");
    assert!(top.contains("bash"), "{top}");
    let used = machine.docker_script("docker stats --no-stream --format '{{.Name}} {{.PIDs}}'");
    assert_eq!(used, "box 1");
    machine.docker_script("docker rm -f $(docker ps -aq)");
    machine.assert_clean().await;
}

#[tokio::test]
async fn files_go_in_out_and_into_images() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/debian", debian::debian())]);
    let changes = machine.docker_script(
        "docker run -d --name box -v /data -v $(pwd)/host:/host debian sleep 1000 >/dev/null
         echo of the host > file
         docker cp file box:/etc/test.conf 2>/dev/null; docker cp box:/etc/test.conf back 2>/dev/null
         docker exec box sh -c 'echo kept > /data/kept; echo seen > /host/seen'
         cat back host/seen; docker diff box",
    );
    assert!(changes.starts_with("of the host\nseen\n"), "{changes}");
    for line in ["C /etc", "A /etc/test.conf"] {
        assert!(changes.lines().any(|shown| shown == line), "{changes}");
    }
    let volume = machine.docker_script("docker inspect -f '{{range .Mounts}}{{.Name}}{{end}}' box");
    assert_eq!(volume.len(), 64, "{volume}");

    // commit, export and import, save and load.
    let printed = machine.docker_script(
        "docker commit box running >/dev/null; docker stop -t 0 box >/dev/null
         docker commit -m 'a file' -a me box stopped >/dev/null
         docker run --rm running cat /etc/test.conf; docker run --rm stopped cat /etc/test.conf
         docker inspect -f '{{.Author}} {{.Comment}}' stopped
         docker export box > flat.tar; cat flat.tar | docker import - flat:1 >/dev/null
         docker run --rm flat:1 cat /etc/test.conf
         docker history -q flat:1 | wc -l; docker history -q stopped | wc -l
         docker save -o saved.tar stopped; docker rmi stopped >/dev/null
         docker load < saved.tar; docker history -q stopped | wc -l",
    );
    let file = "of the host";
    assert_eq!(
        printed,
        format!("{file}\n{file}\nme a file\n{file}\n1\n1\nLoaded image: stopped:latest\n1")
    );
    machine.docker_script("docker rm -v box; docker rmi -f $(docker images -qa)");
    assert_eq!(machine.docker_script("docker volume ls -q"), "");
    assert!(fs::exists(machine.path("host/seen")).unwrap());
    machine.assert_clean().await;
}

fn states(machine: &Machine) -> Vec<String> {
    let listed = succeed(machine, &["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
    let mut listed: Vec<String> = listed.lines().map(str::to_owned).collect();
    listed.sort_unstable();
    listed
}

#[tokio::test]
async fn containers_go_through_their_states_one_by_one_and_all_at_once() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/debian", debian::debian())]);
    machine.docker_script(
        "docker create --name made debian
         docker run --name ended debian true
         docker run -d --name paused debian sleep 1000; docker pause paused
         docker run -d --name running debian sleep 1000
         docker run -d --name again --restart always debian false",
    );
    let mut seen = states(&machine);
    seen.retain(|line| !line.starts_with("again "));
    assert_eq!(seen, ["ended exited", "made created", "paused paused", "running running"]);
    let shown = machine.docker_script("docker ps -f status=paused --format '{{.Status}}'");
    assert!(shown.starts_with("Up ") && shown.ends_with(" (Paused)"), "{shown}");
    let refused = fail(&machine, &["exec", "paused", "true"]);
    assert!(refused.contains("is paused, unpause the container before exec"), "{refused}");
    let refused = fail(&machine, &["rm", "running"]);
    assert!(refused.contains("stop the container before removing or force remove"), "{refused}");
    let refused = fail(&machine, &["image", "rm", "debian"]);
    assert!(refused.contains("conflict: unable to "), "{refused}");
    let echoed = machine.docker_script(
        "docker unpause paused; docker restart -t 0 running; docker start made ended
         docker kill running; docker wait running; docker container stop -t 0 again
         docker rename made new; docker rm -f new",
    );
    assert_eq!(echoed, "paused\nrunning\nmade\nended\nrunning\n137\nagain\nnew");
    let events = machine.docker_script(
        "docker events --since 1h --until $(($(date +%s) + 1)) --filter container=running --format '{{.Action}}'",
    );
    for action in ["create", "start", "kill", "die", "restart"] {
        assert!(events.lines().any(|line| line == action), "{action}: {events}");
    }
    machine.docker_script(
        "docker stop -t 0 $(docker ps -q); docker rm -v $(docker ps -aq -f name=paused)",
    );
    let pruned = machine.docker_script("docker container prune -f");
    assert!(pruned.starts_with("Deleted Containers:\n"), "{pruned}");
    assert!(states(&machine).is_empty(), "{:?}", states(&machine));
    machine.assert_clean().await;
}
