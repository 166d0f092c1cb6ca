//! berth-bridge, called by upstream's cnitool and by containerd.

use std::{fs, io::Read, net::TcpStream, time::Duration};

use berth_proto::v1;
use berth_tests::{
    Containerd, DockerRegistry, Image, Machine, binary, busybox, container, eventually, pod, tools,
};
use serde_json::{Value, json};

fn network(machine: &Machine) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.88.0.0/16" }]],
        "dataDir": machine.path("ipam"),
    });
    json!({ "cniVersion": "1.1.0", "name": "peer", "plugins": [{
        "type": "berth-bridge", "isDefaultGateway": true, "ipMasq": true,
        "capabilities": { "portMappings": true }, "ipam": ipam }] })
}

fn says(machine: &Machine, port: u16) -> String {
    machine.in_network(|| {
        let mut answer = String::new();
        let _ = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.read_to_string(&mut answer)
        });
        answer.trim().to_owned()
    })
}

#[test]
#[ignore = "needs hack/tools/build peer"]
fn cnitool_drives_the_plugin() {
    let machine = Machine::new();
    fs::create_dir(machine.path("net.d")).unwrap();
    fs::write(machine.path("net.d/10.conflist"), network(&machine).to_string()).unwrap();
    machine.output("ip", &["netns", "add", "pod"]);
    let call = |verb: &str| {
        let output = machine
            .command(tools().join("cnitool"))
            .args([verb, "peer", "/run/netns/pod"])
            .env("NETCONFPATH", machine.path("net.d"))
            .env("CNI_PATH", binary("berth-bridge").parent().unwrap())
            .env(
                "CAP_ARGS",
                r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#,
            )
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    for verb in ["add", "check", "status", "gc", "check", "del", "del"] {
        let (good, said) = call(verb);
        // A GC without valid attachments frees everything.
        assert_eq!(good, verb != "check" || said.is_empty(), "{verb}: {said}");
    }
    assert!(!machine.output("nft", &["list", "ruleset"]).contains("comment"));
    assert!(!fs::exists(machine.path("ipam/peer/10.88.0.2")).unwrap());
}

#[tokio::test]
#[ignore = "needs hack/tools/build peer"]
async fn containerd_runs_pods_on_the_plugin() {
    let machine = Machine::new();
    let registry = DockerRegistry::start(&machine).await;
    let image = registry.push(&machine, "busybox", "1", &Image::busybox());
    registry.push(&machine, "pause", "1", &Image::simple(busybox(), &["/bin/sleep", "1000000"]));
    let pause = format!("{}/pause:1", registry.host);
    let containerd = Containerd::start(&machine, &network(&machine), &pause).await;
    let cri = containerd.cri();
    cri.pull(&image).await.unwrap();
    let mapping = v1::PortMapping { host_port: 8080, container_port: 80, ..Default::default() };
    let config = v1::PodSandboxConfig { port_mappings: vec![mapping], ..pod(&machine, "p") };
    let sandbox = cri.run_pod(config.clone()).await.unwrap();
    assert_eq!(cri.pod_status(&sandbox).await.unwrap().network.unwrap().ip, "10.88.0.2");
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container("c", &image, "exec nc -ll -p 80 -e echo hello")),
        sandbox_config: Some(config),
    };
    let id = cri.runtime.clone().create_container(request).await.unwrap().into_inner().container_id;
    cri.start(&id).await.unwrap();
    eventually("an answer through the port of the host", async || says(&machine, 8080) == "hello")
        .await;
    cri.stop_pod(&sandbox).await.unwrap();
    cri.remove_pod(&sandbox).await.unwrap();
    assert!(!machine.output("nft", &["list", "ruleset"]).contains("comment"));
    assert!(!fs::exists(machine.path("ipam/peer/10.88.0.2")).unwrap());
}
