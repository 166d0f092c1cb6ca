//! `berthd engine import-config`: from dockerd's daemon.json to berth.

use std::{fs, path::Path, process::Command};

use berth_tests::{Capability, FakeRegistry, Image, binary, skip_without};

use crate::{ready, succeed};

/// Whether it succeeds, and what it says.
fn import(machine: &Path, options: &[&str]) -> (bool, String) {
    let mut command = Command::new(binary("berthd"));
    command.arg("--config").arg(machine.join("config.toml")).args(["engine", "import-config"]);
    let output = command.args(options).arg(machine.join("daemon.json")).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn the_mirrors_of_a_daemon_json_are_asked_by_the_next_pull() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let mirror = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let text = format!(
        r#"{{"registry-mirrors": ["http://{}/"], "insecure-registries": ["reg.example:5000"],
            "bip": "10.1.0.1/24", "data-root": "/data/docker", "live-restore": true}}"#,
        mirror.host
    );
    fs::write(machine.path("daemon.json"), text).unwrap();
    let written = machine.path("certs.d/docker.io/hosts.toml");
    let (done, said) = import(machine.dir.path(), &["--dry-run"]);
    assert!(done && said.contains("hosts.toml: would be written"), "{said}");
    assert!(!written.exists());

    let (done, said) = import(machine.dir.path(), &[]);
    for line in [
        "bip: NOT TAKEN OVER: docker0 is 172.17.0.0/16",
        "data-root: `root`, below",
        "live-restore: always so",
        "certs.d/docker.io/hosts.toml: written\n",
        "certs.d/reg.example:5000/hosts.toml: written\n",
        "\nroot = \"/data/docker/berth\"\n\n[engine]\nlisten = \"/run/docker.sock\"\n",
    ] {
        assert!(done && said.contains(line), "{line}: {said}");
    }
    succeed(&machine, &["pull", "--quiet", "busybox"]);
    assert!(mirror.requests().iter().any(|request| request.path.contains("library/busybox")));

    // What is there is kept, or replaced where that is asked for.
    let (done, said) = import(machine.dir.path(), &[]);
    assert!(done && said.contains("hosts.toml: is there, and says the same"), "{said}");
    fs::write(&written, "server = \"https://mine.example\"\n").unwrap();
    let (done, said) = import(machine.dir.path(), &[]);
    assert!(!done && said.contains("docker.io/hosts.toml: KEPT: "), "{said}");
    assert_eq!(fs::read_to_string(&written).unwrap(), "server = \"https://mine.example\"\n");
    let (done, said) = import(machine.dir.path(), &["--force"]);
    assert!(done && said.contains("docker.io/hosts.toml: replaced"), "{said}");
    assert!(fs::read_to_string(&written).unwrap().contains(&mirror.host));

    fs::write(machine.path("daemon.json"), "{\"registry-mirrors\": [\"../..\"]}").unwrap();
    let (done, said) = import(machine.dir.path(), &[]);
    assert!(!done && said.contains("\"../..\" is no mirror"), "{said}");
    machine.assert_clean().await;
}
