//! crictl, which nobody here wrote, drives one pod through its life. `hack/test` builds it and runs this.

#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{fs, path::Path, process::Command};

use berth_tests::{DockerRegistry, Image, Machine, eventually};
use serde_json::{Value, json};

fn crictl(machine: &Machine, arguments: &[&str]) -> (bool, String) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/tools/bin/crictl");
    let mut command = Command::new(program);
    let output = command.arg("--config").arg(machine.path("crictl.yaml")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// Standard output of a command that must succeed.
fn run(machine: &Machine, arguments: &[&str]) -> String {
    let (ok, text) = crictl(machine, arguments);
    assert!(ok, "crictl {arguments:?}: {text}");
    text
}

fn write(machine: &Machine, name: &str, value: &Value) -> String {
    let path = machine.path(name);
    fs::write(&path, value.to_string()).unwrap();
    path.display().to_string()
}

fn last_line(text: &str) -> String {
    text.trim().lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs crictl: hack/test builds it"]
async fn a_pods_life_by_crictl() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let endpoint = format!("unix://{}", daemon.socket.display());
    fs::write(
        machine.path("crictl.yaml"),
        format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 20\n"),
    )
    .unwrap();
    let registry = DockerRegistry::start(&machine).await;
    let image = registry.push(&machine, "busybox", "1.0", &Image::busybox());

    assert!(run(&machine, &["version"]).contains("RuntimeName:  berth"));
    let info: Value = serde_json::from_str(&run(&machine, &["info"])).unwrap();
    assert!(
        info["status"]["conditions"].as_array().unwrap().iter().all(|condition| condition["status"] == true),
        "{info}"
    );
    assert!(run(&machine, &["runtime-config"]).contains("CGROUPFS"));
    run(&machine, &["pull", &image]);
    assert!(run(&machine, &["images"]).contains("127.0.0.1:5000/busybox"));
    assert!(run(&machine, &["inspecti", &image]).contains("sha256:"));
    assert!(run(&machine, &["imagefsinfo"]).contains("usedBytes"));

    let pod = json!({
        "metadata": { "name": "life", "namespace": "default", "uid": "u", "attempt": 0 }, "hostname": "life",
        "log_directory": machine.path("logs"), "linux": { "cgroup_parent": machine.cgroup_parent },
        "labels": { "io.kubernetes.pod.name": "life", "io.kubernetes.pod.namespace": "default" },
    });
    let container =
        json!({ "metadata": { "name": "main" }, "image": { "image": image }, "log_path": "main.log", "linux": {} });
    let (pod_file, container_file) = (write(&machine, "pod.json", &pod), write(&machine, "container.json", &container));
    let pod = last_line(&run(&machine, &["runp", &pod_file]));
    let container = last_line(&run(&machine, &["create", &pod, &container_file, &pod_file]));
    assert!(run(&machine, &["ps", "-a"]).contains("Created"));
    run(&machine, &["start", &container]);
    assert!(run(&machine, &["ps"]).contains("Running"));
    assert!(run(&machine, &["pods"]).contains("Ready"));
    let status: Value = serde_json::from_str(&run(&machine, &["inspect", &container])).unwrap();
    assert!(status["info"]["pid"].as_i64().unwrap() > 0 && status["status"]["state"] == "CONTAINER_RUNNING");
    let status: Value = serde_json::from_str(&run(&machine, &["inspectp", &pod])).unwrap();
    assert!(status["status"]["network"]["ip"].as_str().unwrap().starts_with("10.88."));
    assert!(run(&machine, &["exec", "-s", &container, "hostname"]).starts_with("life"));
    eventually("a log line", async || run(&machine, &["logs", &container]).contains("hello from the image")).await;
    run(&machine, &["logs", "-r", &container]);
    assert!(!crictl(&machine, &["exec", "-s", &container, "false"]).0);
    run(&machine, &["stop", &container]);
    assert!(run(&machine, &["ps", "-a"]).contains("Exited"));
    run(&machine, &["rm", &container]);
    run(&machine, &["stopp", &pod]);
    assert!(run(&machine, &["pods"]).contains("NotReady"));
    run(&machine, &["rmp", &pod]);
    run(&machine, &["rmi", &image]);
    assert!(!run(&machine, &["images"]).contains("busybox"));
    assert!(!crictl(&machine, &["inspect", &container]).0);
    machine.assert_clean().await;
}
