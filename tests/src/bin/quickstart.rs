//! What `hack/quickstart` runs after the build: it starts a registry, a daemon and a pod, and
//! prints the time that each step took.

use std::{
    error::Error,
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use berth_proto::v1;
use berth_tests::{Cri, DockerRegistry, Engine, Image, binary, upload};
use tokio::signal::unix::{SignalKind, signal};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let once = std::env::args().any(|argument| argument == "--once");
    let directory = tempfile::Builder::new().prefix("berth-quickstart-").tempdir()?;
    // A bridge that was there before is somebody's, and stays.
    let absent = BRIDGES.into_iter().filter(|bridge| !has_interface(bridge)).collect::<Vec<_>>();
    let docker = directory.path().join("docker.sock");
    let config = directory.path().join("config.toml");
    fs::write(&config, format!("[engine]\nlisten = {docker:?}\n"))?;
    let socket = directory.path().join("berth.sock");
    let log = fs::File::create(directory.path().join("berthd.log"))?;
    let mut daemon = Command::new(binary("berthd"))
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(directory.path().join("root"))
        .arg("--state")
        .arg(directory.path().join("state"))
        .arg("--listen")
        .arg(&socket)
        .stderr(if once { Stdio::from(log) } else { Stdio::inherit() })
        .spawn()?;
    let cri = Cri::connect(&socket);
    let result = Box::pin(show(&cri, directory.path(), &socket, once)).await;
    // Also after an error, which is reported only then.
    if result.is_ok() {
        clear_engine(&Engine::at(docker)).await;
    }
    let cleared = clear(&cri).await;
    daemon.kill()?;
    daemon.wait()?;
    remove_networks(&absent);
    if result.is_err() && once {
        eprintln!("{}", fs::read_to_string(directory.path().join("berthd.log"))?);
    }
    result.and(cleared)?;
    directory.close()?;
    if once {
        say("Everything is removed again.");
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "a program for people")]
fn say(line: &str) {
    println!("{line}");
}

/// Prints what a step did and how long it took, and returns its result.
fn step<T>(begun: Instant, what: &str, result: T) -> T {
    say(&format!("{:>8.1} ms  {what}", begun.elapsed().as_secs_f64() * 1000.0));
    result
}

async fn show(cri: &Cri, directory: &Path, socket: &Path, once: bool) -> Outcome<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let begun = Instant::now();
    cri.serving().await?;
    step(begun, "berthd serves CRI", ());

    let begun = Instant::now();
    // A free port: the listener is closed again before the registry takes it.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let registry = DockerRegistry::launch(Command::new("docker-registry"), directory, port);
    let client = reqwest::Client::new();
    let base = format!("http://{}/v2/busybox", registry.host);
    let mut uploaded = upload(&client, &base, "latest", &Image::busybox()).await;
    // The registry takes a moment to listen.
    while uploaded.as_ref().is_err_and(reqwest::Error::is_connect) && begun.elapsed().as_secs() < 20
    {
        uploaded = upload(&client, &base, "latest", &Image::busybox()).await;
    }
    uploaded?;
    let image = format!("{}/busybox", registry.host);
    step(begun, &format!("an image of Debian's busybox is in a registry: {image}"), ());

    let begun = Instant::now();
    let id = cri.pull(&image).await?;
    step(begun, &format!("pulled {}", &id[..19]), ());
    let begun = Instant::now();
    let pod = cri.run_pod(pod(directory)).await?;
    let ip = cri.pod_status(&pod).await?.network.unwrap_or_default().ip;
    step(begun, &format!("pod {} runs, IP {ip}", &pod[..13]), ());
    let begun = Instant::now();
    let container = Box::pin(cri.create(&pod, container(&image))).await?;
    step(begun, &format!("container {} created", &container[..13]), ());
    let begun = Instant::now();
    cri.start(&container).await?;
    step(begun, "started", ());
    let begun = Instant::now();
    let output =
        cri.exec(&container, &["sh", "-c", "hostname; id; ip -o addr show eth0"], 10).await?;
    step(begun, "exec: hostname; id; ip -o addr show eth0", ());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        say(&format!("             {line}"));
    }
    let path = cri.status(&container).await?.log_path;
    berth_tests::eventually("a log line", async || {
        fs::read_to_string(&path).is_ok_and(|text| text.contains("hello"))
    })
    .await;
    say(&format!("             log {path}:"));
    for line in fs::read_to_string(&path)?.lines() {
        say(&format!("             {line}"));
    }
    if once {
        return Ok(());
    }
    let crictl = format!("crictl -r unix://{}", socket.display());
    say("\nberthd stays in the foreground; Ctrl-C removes everything. In another terminal, as \
            root:\n");
    for command in [
        "pods",
        "ps",
        &format!("logs {}", &container[..13]),
        &format!("exec -s {} ps", &container[..13]),
        "images",
    ] {
        say(&format!("  {crictl} {command}"));
    }
    say("\nor with the docker CLI:\n");
    let docker = directory.join("docker.sock");
    say(&format!("  DOCKER_HOST=unix://{} docker run --rm -it {image}", docker.display()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn pod(directory: &Path) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "quickstart".into(),
            namespace: "default".into(),
            uid: "quickstart".into(),
            attempt: 0,
        }),
        hostname: "quickstart".into(),
        log_directory: directory.join("logs").display().to_string(),
        ..Default::default()
    }
}

fn container(image: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "busybox".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        log_path: "busybox.log".into(),
        ..Default::default()
    }
}

/// Removes all pods and images.
async fn clear(cri: &Cri) -> Outcome<()> {
    for pod in cri.pods(v1::PodSandboxFilter::default()).await {
        cri.remove_pod(&pod.id).await?;
    }
    for image in cri.images().await {
        cri.remove_image(&image.id).await?;
    }
    Ok(())
}

/// Removes the containers that were made with the docker CLI meanwhile.
async fn clear_engine(engine: &Engine) {
    let all = engine.get("/containers/json?all=1").await;
    for id in all.as_array().into_iter().flatten().filter_map(|container| container["Id"].as_str())
    {
        engine.remove(id).await;
    }
}

/// Of pods, and of docker's containers.
const BRIDGES: [&str; 2] = ["berth0", "docker0"];

fn has_interface(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Removes the bridges that were not there before, and the nftables table with that of pods. Pods
/// and containers share them, so that none of these removes them.
fn remove_networks(absent: &[&str]) {
    let run = |program: &str, arguments: &[&str]| {
        if let Err(error) = Command::new(program).args(arguments).status() {
            eprintln!("{program}: {error}");
        }
    };
    for bridge in absent.iter().filter(|bridge| has_interface(bridge)) {
        run("ip", &["link", "delete", bridge]);
    }
    if absent.contains(&BRIDGES[0]) {
        run("nft", &["delete", "table", "inet", "berth"]);
    }
}
