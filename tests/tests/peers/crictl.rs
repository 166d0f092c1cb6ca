//! crictl, and the client-go code that kubectl uses, drive a pod through its life and its streams.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output, Stdio},
};

use berth_proto::v1;
use berth_tests::{
    DockerRegistry, Image, Machine, certificate, container, eventually, pod, ready, tools,
};
use serde_json::{Value, json};

fn crictl(machine: &Machine, arguments: &[&str]) -> (bool, String) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/tools/bin/crictl");
    let mut command = Command::new(program);
    let output =
        command.arg("--config").arg(machine.path("crictl.yaml")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// Runs crictl, which must succeed, and returns its standard output.
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
        info["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|condition| condition["status"] == true),
        "{info}"
    );
    assert!(run(&machine, &["runtime-config"]).contains("CGROUPFS"));
    run(&machine, &["pull", &image]);
    assert!(run(&machine, &["images"]).contains("127.0.0.1:5000/busybox"));
    assert!(run(&machine, &["inspecti", &image]).contains("sha256:"));
    assert!(run(&machine, &["imagefsinfo"]).contains("usedBytes"));

    let pod = json!({
        "metadata": { "name": "life", "namespace": "default", "uid": "u", "attempt": 0 },
        "hostname": "life",
        "log_directory": machine.path("logs"), "linux": { "cgroup_parent": machine.cgroup_parent },
        "labels": { "io.kubernetes.pod.name": "life", "io.kubernetes.pod.namespace": "default" },
    });
    let container = json!({
        "metadata": { "name": "main" },
        "image": { "image": image },
        "log_path": "main.log",
        "linux": {},
    });
    let (pod_file, container_file) =
        (write(&machine, "pod.json", &pod), write(&machine, "container.json", &container));
    let pod = last_line(&run(&machine, &["runp", &pod_file]));
    let container = last_line(&run(&machine, &["create", &pod, &container_file, &pod_file]));
    assert!(run(&machine, &["ps", "-a"]).contains("Created"));
    run(&machine, &["start", &container]);
    assert!(run(&machine, &["ps"]).contains("Running"));
    assert!(run(&machine, &["pods"]).contains("Ready"));
    let status: Value = serde_json::from_str(&run(&machine, &["inspect", &container])).unwrap();
    assert!(
        status["info"]["pid"].as_i64().unwrap() > 0
            && status["status"]["state"] == "CONTAINER_RUNNING"
    );
    let spec = &status["info"]["runtimeSpec"];
    assert!(
        spec["mounts"].as_array().unwrap().iter().any(|mount| mount["destination"] == "/etc/hosts"),
        "{spec}"
    );
    let network = |status: &Value| -> Value {
        let namespaces = status["info"]["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
        namespaces.iter().find(|namespace| namespace["type"] == "network").unwrap()["path"].clone()
    };
    let joined = network(&status);
    let status: Value = serde_json::from_str(&run(&machine, &["inspectp", &pod])).unwrap();
    assert!(status["status"]["network"]["ip"].as_str().unwrap().starts_with("10.88."));
    assert_eq!(network(&status), joined);
    assert_eq!(status["info"]["netNamespace"], joined);
    assert!(run(&machine, &["exec", "-s", &container, "hostname"]).starts_with("life"));
    eventually("a log line", async || {
        run(&machine, &["logs", &container]).contains("hello from the image")
    })
    .await;
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

/// What crictl shows of a busy pod, beside the numbers of its cgroup.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs crictl: hack/test builds it"]
async fn what_crictl_shows_of_a_busy_pod() {
    let (machine, daemon, cri, image) = ready().await;
    let endpoint = format!("unix://{}", daemon.socket.display());
    let config = format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 20\n");
    fs::write(machine.path("crictl.yaml"), config).unwrap();
    let mut events = Command::new(tools().join("crictl"))
        .arg("--config")
        .arg(machine.path("crictl.yaml"))
        .arg("events")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(events.stdout.take().unwrap());
    // `crictl events` prints nothing before the first event, so pods are run until it does.
    let probe = async |number: usize| {
        let sandbox = cri.run_pod(pod(&machine, &format!("probe{number}"))).await.unwrap();
        cri.remove_pod(&sandbox).await.unwrap();
    };
    let listening = std::thread::spawn(move || {
        let mut line = String::new();
        heard.read_line(&mut line).unwrap();
        (line, heard)
    });
    let mut probes = 0;
    while !listening.is_finished() {
        probe(probes).await;
        probes += 1;
    }
    let (first, mut heard) = listening.join().unwrap();
    assert!(first.contains("podSandboxStatus") || first.trim() == "{", "{first}");

    let sandbox = cri.run_pod(pod(&machine, "busy")).await.unwrap();
    let script = "x=$(head -c 30000000 /dev/zero | tr '\\0' a); dd if=/dev/zero of=/file bs=1M count=16 2>/dev/null; \
        echo ready; while true; do :; done";
    let id = cri.run(&sandbox, container("busy", &image, script)).await.unwrap();
    let log = cri.status(&id).await.unwrap().log_path;
    eventually("its file", async || fs::read_to_string(&log).unwrap().contains("ready")).await;
    let json =
        |arguments: &[&str]| -> Value { serde_json::from_str(&run(&machine, arguments)).unwrap() };
    let number = |value: &Value| value["value"].as_str().unwrap().parse::<u64>().unwrap();
    let in_use: u64 = machine
        .cgroup_file(&id, ("memory", "memory.usage_in_bytes"), "memory.current")
        .parse()
        .unwrap();
    let near = |what: &str, told: u64, counted: u64| {
        assert!(told.abs_diff(counted) <= counted / 20, "{what}: told {told}, counted {counted}");
    };
    let stats = json(&["stats", "-o", "json"]);
    near("memory", number(&stats["stats"][0]["memory"]["usageBytes"]), in_use);
    near("disk", number(&stats["stats"][0]["writableLayer"]["usedBytes"]), 16 << 20);
    let table = run(&machine, &["stats"]);
    assert!(table.contains("busy") && table.contains("16.78MB"), "{table}");
    let pods = json(&["statsp", "-o", "json"]);
    near("memory of the pod", number(&pods["stats"][0]["linux"]["memory"]["usageBytes"]), in_use);
    assert!(
        number(&pods["stats"][0]["linux"]["network"]["defaultInterface"]["rxBytes"]) > 0,
        "{pods}"
    );
    assert!(run(&machine, &["statsp"]).contains("busy"));
    assert_eq!(json(&["metricdescs"])["descriptors"].as_array().unwrap().len(), 56);
    let metrics = json(&["metricsp"]);
    let own = metrics["podMetrics"][0]["containerMetrics"][0]["metrics"].as_array().unwrap();
    let memory =
        own.iter().find(|metric| metric["name"] == "container_memory_usage_bytes").unwrap();
    near("metric of memory", number(&memory["value"]), in_use);

    cri.remove_pod(&sandbox).await.unwrap();
    let mut text = String::new();
    let mut line = String::new();
    while !(text.contains(&id)
        && text.contains("CONTAINER_DELETED_EVENT")
        && line.contains(&sandbox))
    {
        line.clear();
        assert!(heard.read_line(&mut line).unwrap() > 0, "{text}");
        text += &line;
    }
    events.kill().unwrap();
    events.wait().unwrap();
    machine.assert_clean().await;
}

/// Runs a program in the machine's network with this input.
fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // Ignored: a program may end without reading all of its input.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs crictl and remotecommand: hack/test builds them"]
async fn sessions_by_kubectls_own_code() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 100000")).await.unwrap();
    let session = async |websocket: bool, flags: &[&str], command: &str, input: &[u8]| {
        let tty = flags.contains(&"-t");
        let stdin = flags.contains(&"-i");
        let cmd = ["sh", "-c", command].map(str::to_owned).to_vec();
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd,
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };
        let url = cri.runtime.clone().exec(request).await.unwrap().into_inner().url;
        let mut program = machine.command(tools().join("remotecommand"));
        program.args(websocket.then_some("-websocket")).args(flags).arg(url);
        let output = feed(program, input);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    for websocket in [false, true] {
        let (code, stdout, stderr) =
            session(websocket, &["-i"], "cat; echo err >&2; exit 7", b"some words").await;
        assert_eq!(
            (code, stdout.as_str(), stderr.as_str()),
            (Some(7), "some words", "err\n"),
            "websocket: {websocket}"
        );
        let much: Vec<u8> = (0..3_000_000_u32).map(|number| b'a' + (number % 26) as u8).collect();
        let (code, stdout, stderr) = session(websocket, &["-i"], "cat", &much).await;
        assert!(
            code == Some(0) && stdout.as_bytes() == much,
            "websocket: {websocket}: {} bytes, {stderr}",
            stdout.len()
        );
        let (code, stdout, _) =
            session(websocket, &[], "cat; head -c 20000000 /dev/zero", b"").await;
        assert_eq!((code, stdout.len()), (Some(0), 20_000_000), "websocket: {websocket}");
        // The size of the terminal is set after the program has started.
        let script = "until [ \"$(stty size)\" = '43 132' ]; do :; done; tty; read line; echo \
            \"<$line>\"; exit 3";
        let (code, stdout, stderr) =
            session(websocket, &["-i", "-t", "-size", "132x43"], script, b"typed\n").await;
        assert!(
            stdout.contains("/dev/pts/") && stdout.contains("<typed>"),
            "websocket: {websocket}: {stdout} {stderr}"
        );
        assert_eq!(code, Some(3), "websocket: {websocket}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs remotecommand: hack/test builds it"]
async fn sessions_with_tls_and_a_certificate_that_is_renewed() {
    let mut machine = Machine::new();
    let (cert, key) = certificate(&machine.path("streaming"));
    machine.config = format!(
        "[streaming]\ntls = {{ cert = {:?}, key = {:?} }}",
        cert.display().to_string(),
        key.display().to_string()
    );
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(&machine, Image::busybox()).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 100000")).await.unwrap();
    let session = async |websocket: bool, ca: &Path| {
        let cmd = ["cat"].map(str::to_owned).to_vec();
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd,
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = cri.runtime.clone().exec(request).await.unwrap().into_inner().url;
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let mut program = machine.command(tools().join("remotecommand"));
        program.args(websocket.then_some("-websocket")).arg("-i").arg("-ca").arg(ca).arg(url);
        let output = feed(program, b"sealed");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for websocket in [false, true] {
        assert_eq!(session(websocket, &cert).await, (true, "sealed".to_owned()));
    }
    let (newer, newer_key) = certificate(&machine.path("newer"));
    assert!(!session(false, &newer).await.0, "it is not that one yet");
    // Certificate and key are replaced one after the other, and do not match in between.
    fs::copy(&newer, &cert).unwrap();
    assert!(!session(false, &newer).await.0);
    fs::copy(&newer_key, &key).unwrap();
    assert_eq!(session(false, &newer).await, (true, "sealed".to_owned()));
    assert!(daemon.log().contains("the previous certificate stays in use"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs crictl: hack/test builds it"]
async fn streams_by_crictl() {
    let (machine, daemon, cri, image) = ready().await;
    let endpoint = format!("unix://{}", daemon.socket.display());
    let crictl = |arguments: &[&str]| {
        let mut command = machine.command(tools().join("crictl"));
        command
            .args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint])
            .args(arguments);
        command
    };
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut config = container(
        "c",
        &image,
        "nc -ll -p 80 -e echo from the pod & while read line; do echo got $line; done",
    );
    config.stdin = true;
    let id = cri.run(&sandbox, config).await.unwrap();
    for (number, transport) in ["spdy", "websocket"].into_iter().enumerate() {
        let exec = crictl(&["exec", "--transport", transport, "-i", &id, "cat"]);
        assert_eq!(
            String::from_utf8_lossy(&feed(exec, b"by crictl").stdout),
            "by crictl",
            "{transport}"
        );
        // With a terminal, which script(1) provides.
        let line = format!(
            "{} --runtime-endpoint {endpoint} exec --transport {transport} -it {id} sh",
            tools().join("crictl").display()
        );
        let mut terminal = machine.command("script");
        terminal.args(["-qec", &line, "/dev/null"]);
        let said = feed(terminal, b"tty\necho $((40+2))\nexit 5\n");
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(text.contains("/dev/pts/") && text.contains("42"), "{transport}: {text}");

        let attach = crictl(&["attach", "--transport", transport, "-i", &id]);
        let mut attach = { attach }.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = attach.stdin.take().unwrap();
        let mut stdout = attach.stdout.take().unwrap();
        let mut heard = String::new();
        while !heard.contains("got hello") {
            stdin.write_all(b"hello\n").unwrap();
            let mut buffer = [0; 1024];
            let length = stdout.read(&mut buffer).unwrap();
            assert!(length > 0, "{transport}: crictl attach left after {heard:?}");
            heard += &String::from_utf8_lossy(&buffer[..length]);
        }
        attach.kill().unwrap();
        attach.wait().unwrap();

        let port = 18080 + number as u16;
        let mapping = format!("{port}:80");
        let mut forward = crictl(&["port-forward", "--transport", transport, &sandbox, &mapping])
            .spawn()
            .unwrap();
        eventually("an answer through the forwarded port", async || {
            let answer = machine.in_network(|| {
                let mut answer = String::new();
                TcpStream::connect(("127.0.0.1", port))
                    .and_then(|mut stream| stream.read_to_string(&mut answer))?;
                std::io::Result::Ok(answer)
            });
            answer.is_ok_and(|answer| answer == "from the pod\n")
        })
        .await;
        forward.kill().unwrap();
        forward.wait().unwrap();
    }
}

#[tokio::test]
#[ignore = "needs passthrough: hack/test builds it"]
async fn grpc_go_may_take_the_sockets_path_for_an_authority() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    // A colon separates a port in a host, and is an ordinary character in a path.
    fs::create_dir(machine.path("a:b:c")).unwrap();
    std::os::unix::fs::symlink(&daemon.socket, machine.path("a:b:c/berth.sock")).unwrap();
    let output = machine
        .command(tools().join("passthrough").canonicalize().unwrap())
        .args([&daemon.socket, &machine.path("a:b:c/berth.sock")])
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out == "berth\n".repeat(4), "{out}{err}");
}
