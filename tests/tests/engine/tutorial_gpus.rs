//! `--gpus`, with a device that the test declares in place of a GPU.

use std::fs;

use berth_tests::{Capability, FakeRegistry, debian, skip_without};
use serde_json::json;

use crate::{fail, ready};

#[tokio::test]
async fn gpus_are_the_devices_that_a_cdi_file_declares() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let _hub = FakeRegistry::hub(&machine, vec![("library/debian", debian::debian())]);
    machine.docker_script("docker pull -q debian");
    let none = fail(&machine, &["run", "--rm", "--gpus", "all", "debian", "true"]);
    let text = "could not select device driver \"\" with capabilities: [[gpu]]";
    assert!(none.contains(text), "{none}");

    let device = |name: &str| {
        json!({ "name": name, "containerEdits": {
            "env": [format!("GPU_{name}=yes")],
            "deviceNodes": [{ "path": format!("/dev/nvidia{name}"), "hostPath": "/dev/zero" }],
        } })
    };
    let all = json!({ "name": "all", "containerEdits": { "env": ["GPU_0=yes", "GPU_1=yes"] } });
    let spec = json!({
        "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [device("0"), device("1"), all],
        "containerEdits": { "deviceNodes": [{ "path": "/dev/nvidiactl", "hostPath": "/dev/null" }] },
    });
    fs::create_dir_all(machine.path("cdi")).unwrap();
    fs::write(machine.path("cdi/nvidia.json"), spec.to_string()).unwrap();
    let script = "debian sh -c 'ls /dev | grep nvidia; env | grep GPU_ | sort'";
    let (zero, both) = ("nvidia0\nnvidiactl\nGPU_0=yes", "nvidiactl\nGPU_0=yes\nGPU_1=yes");
    for (options, seen) in [
        ("--gpus all", both),
        ("--gpus 1", zero),
        ("--gpus device=0", zero),
        ("--gpus '\"device=0\",capabilities=utility'", zero),
        ("--device nvidia.com/gpu=0", zero),
    ] {
        let printed = machine.docker_script(&format!("docker run --rm {options} {script}"));
        assert_eq!(printed, seen, "{options}");
    }
    let unknown = fail(&machine, &["run", "--rm", "--gpus", "device=7", "debian", "true"]);
    assert!(unknown.contains("nvidia.com/gpu=7"), "{unknown}");
    machine.docker_script(
        "docker run --rm --gpus all debian sh -c 'head -c 1 /dev/nvidiactl | wc -c'",
    );
    machine.assert_clean().await;
}
