//! What the shim does for containers of the Docker Engine API, and CRI cannot ask for: by a change of
//! its spec before the start.

use std::fs;

use berth_proto::v1;
use berth_tests::{Cri, Machine, container, pod, ready};
use serde_json::{Value, json};

/// Runs a container with a changed spec, removes it, and returns its log and exit code.
async fn run(
    machine: &Machine,
    cri: &Cri,
    (sandbox, config): (&str, v1::ContainerConfig),
    change: impl FnOnce(&mut Value),
) -> (String, i32) {
    let id = cri.create(sandbox, config).await.unwrap();
    let path = machine.path("root").join("containers").join(&id).join("spec.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut spec);
    fs::write(&path, spec.to_string()).unwrap();
    cri.start(&id).await.unwrap();
    let exited = cri.exited(&id).await;
    cri.remove(&id).await.unwrap();
    (fs::read_to_string(&exited.log_path).unwrap_or_default(), exited.exit_code)
}

#[tokio::test]
async fn an_init_passes_signals_on_and_ends_as_its_program_does() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let init = |spec: &mut Value| spec["program"]["container"]["init"] = true.into();
    for (name, script, said, code) in [
        // The shell is another process, and the first one's ends take an orphan along.
        ("id", "cat /proc/1/comm; (sleep 0.1 & ); exit 7", "docker-init", 7),
        // To the first process; the shell gets it from there.
        (
            "trap",
            "trap 'echo got it; exit 3' USR1; kill -USR1 1; while :; do sleep 0.1; done",
            "got it",
            3,
        ),
        ("killed", "kill -KILL $$", "", 137),
    ] {
        let config = container(name, &image, script);
        let (log, exit_code) = run(&machine, &cri, (&sandbox, config), init).await;
        assert!(log.contains(said) && exit_code == code, "{name}: {exit_code} {log}");
    }
}

#[tokio::test]
async fn limits_and_file_systems_are_as_the_spec_says() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let layer = machine.path("layer");
    for name in ["upper", "work"] {
        fs::create_dir_all(layer.join(name)).unwrap();
    }
    let change = |spec: &mut Value| {
        let container = &mut spec["program"]["container"];
        container["process"]["ulimits"] = json!([{ "name": "nofile", "soft": 77, "hard": 88 }, { "name": "core", "soft": 0, "hard": 0 }]);
        container["rootfs"]["writable"] = json!(layer);
        container["mounts"].as_array_mut().unwrap().push(json!({
            "target": "/tmpfs", "noexec": true,
            "kind": { "tmpfs": { "size": 0, "mode": 0o700, "options": [["size", "64k"]] } },
        }));
    };
    let script = "ulimit -n; grep ' /tmpfs ' /proc/mounts; echo kept > /written";
    for round in ["one", "two"] {
        let config = container(round, &image, script);
        let (log, exit_code) = run(&machine, &cri, (&sandbox, config), change).await;
        assert!(log.contains("F 77\n") && log.contains("size=64k,mode=700"), "{log}");
        assert!(log.contains("noexec") && exit_code == 0, "{log}");
        // It outlives the container, which never had a layer of its own.
        assert_eq!(fs::read_to_string(layer.join("upper/written")).unwrap(), "kept\n");
    }
}
