//! docker compose, unmodified: a page that is served through a published port, written by a worker that
//! asks a database by name.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use berth_tests::{Capability, Engine, Machine, eventually, finish, skip_without};
use serde_json::Value;

use crate::ready;

/// A project in a directory of the machine's.
struct Project<'a> {
    machine: &'a Machine,
    engine: &'a Engine,
    directory: PathBuf,
}

const YAML: &str = r#"
name: shop
services:
  db:
    image: IMAGE
    command: nc -ll -p 6379 -e echo PONG
    stop_signal: SIGKILL
    healthcheck: { test: "nc -w 1 127.0.0.1 6379 </dev/null | grep -q PONG", interval: 200ms, retries: 50 }
    networks: { back: { aliases: [redis] } }
  worker:
    image: IMAGE
    command: [sh, -c, "while :; do echo $$(cat /greeting /run/secrets/word) $$(nc -w 1 redis 6379 </dev/null) > /pages/index.html; sleep 0.2; done"]
    stop_signal: SIGKILL
    depends_on: { db: { condition: service_healthy } }
    volumes: [pages:/pages]
    networks: [back]
    configs: [{ source: greeting, target: /greeting }]
    secrets: [word]
  web:
    image: IMAGE
    command: busybox httpd -f -p 80 -h /pages
    stop_signal: SIGKILL
    depends_on: [worker]
    ports: ["8080:80"]
    volumes: [pages:/pages:ro]
    networks: { front: { ipv4_address: 10.77.9.7 } }
  extra:
    image: IMAGE
    command: sleep 1000
    stop_signal: SIGKILL
    profiles: [more]
networks:
  back: { internal: true }
  front: { ipam: { config: [{ subnet: 10.77.9.0/24 }] } }
volumes: { pages: {} }
configs: { greeting: { file: ./greeting } }
secrets: { word: { file: ./word } }
"#;

const PAGE: &str = "hellosecret PONG";

impl<'a> Project<'a> {
    fn new(machine: &'a Machine, engine: &'a Engine, image: &str) -> Self {
        let directory = machine.path("shop");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("greeting"), "hello").unwrap();
        fs::write(directory.join("word"), "secret").unwrap();
        fs::write(directory.join("compose.yaml"), YAML.replace("IMAGE", image)).unwrap();
        Self { machine, engine, directory }
    }

    /// What compose prints on standard output; it has to succeed.
    fn compose(&self, arguments: &[&str]) -> String {
        let file = self.directory.join("compose.yaml");
        let file = file.to_str().unwrap();
        let arguments = [&["compose", "--progress", "plain", "-f", file], arguments].concat();
        let mut command = self.machine.docker_with_plugins(&arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command.spawn().unwrap());
        let said = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "docker {arguments:?}: {text}{said}");
        text
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.directory.join("compose.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    }

    async fn id(&self, name: &str) -> String {
        self.engine.inspect(name).await["Id"].as_str().unwrap().to_owned()
    }

    /// The page as a client of the machine's port sees it.
    fn page(&self) -> String {
        self.machine.in_network(|| {
            let mut text = String::new();
            if let Ok(mut stream) = TcpStream::connect("127.0.0.1:8080") {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
                let _ = stream.read_to_string(&mut text);
            }
            text.split_once("\r\n\r\n").map_or(text.as_str(), |(_, page)| page).trim().to_owned()
        })
    }
}

#[tokio::test]
#[ignore = "compose is built by hack/tools/build compose"]
async fn a_page_a_worker_and_a_database() {
    if skip_without(Capability::DockerPlugins) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    let shop = Project::new(&machine, &engine, &image);
    shop.compose(&["up", "-d", "--wait"]);
    eventually("the page", async || shop.page() == PAGE).await;
    let listed = shop.compose(&["ps", "--format", "{{.Service}} {{.State}} {{.Health}}"]);
    let mut listed: Vec<&str> = listed.lines().map(str::trim).collect();
    listed.sort_unstable();
    assert_eq!(listed, ["db running healthy", "web running", "worker running"]);
    assert_eq!(
        shop.compose(&["exec", "-T", "web", "cat", "/pages/index.html"]).trim(),
        shop.page()
    );
    // Nothing has changed, and nothing is made anew; also by another daemon.
    let (db, web) = (shop.id("shop-db-1").await, shop.id("shop-web-1").await);
    daemon.kill();
    let _daemon = machine.start().await;
    shop.compose(&["up", "-d", "--wait"]);
    assert_eq!(
        (shop.id("shop-db-1").await, shop.id("shop-web-1").await),
        (db.clone(), web.clone())
    );
    // Only what has changed is.
    shop.edit("httpd -f", "httpd -v -f");
    shop.compose(&["up", "-d", "--wait"]);
    assert_eq!(shop.id("shop-db-1").await, db);
    assert_ne!(shop.id("shop-web-1").await, web);
    eventually("the page", async || shop.page() == PAGE).await;
    shop.compose(&["up", "-d", "--scale", "worker=3", "--no-recreate"]);
    assert_eq!(shop.compose(&["ps", "-q", "worker"]).lines().count(), 3);
    shop.compose(&["restart", "-t", "0", "web"]);
    eventually("the page", async || shop.page() == PAGE).await;
    let said = shop.compose(&[
        "run",
        "--rm",
        "-T",
        "--no-deps",
        "worker",
        "sh",
        "-c",
        "nc -w 1 db 6379 </dev/null",
    ]);
    assert!(said.contains("PONG"), "{said}");
    shop.compose(&["--profile", "more", "up", "-d", "extra"]);
    assert!(shop.compose(&["--profile", "more", "ps", "--services"]).contains("extra"));
    assert!(shop.compose(&["logs", "--no-color", "web"]).contains("web-1"));
    shop.compose(&["stop", "-t", "0", "worker"]);
    shop.compose(&["--profile", "more", "down", "-v"]);
    for (path, key) in [
        ("/containers/json?all=1", None),
        (r#"/networks?filters={"type":["custom"]}"#, None),
        ("/volumes", Some("Volumes")),
    ] {
        let left = engine.get(path).await;
        let left = key.map_or(&left, |key| &left[key]);
        assert!(left.as_array().is_none_or(Vec::is_empty), "{path}: {left}");
    }
    machine.assert_clean().await;
}

/// A container from the image that buildx runs for BuildKit, made of what is built here.
pub(crate) fn buildkit_image(machine: &Machine, image: &str, directory: &Path) {
    let tools = berth_tests::docker_plugins().expect("it was asked for");
    fs::create_dir_all(directory).unwrap();
    for name in ["buildkitd", "buildctl", "runc"] {
        fs::copy(tools.join(name), directory.join(name)).unwrap();
    }
    let text = format!(
        "FROM {image}\nCOPY buildctl buildkitd runc /usr/bin/\nVOLUME /var/lib/buildkit\n\
         ENTRYPOINT [\"buildkitd\"]\n"
    );
    fs::write(directory.join("Dockerfile"), text).unwrap();
    let tag = "moby/buildkit:buildx-stable-1";
    let mut command =
        machine.docker_command(&["build", "-q", "-t", tag, directory.to_str().unwrap()]);
    command.env("DOCKER_BUILDKIT", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = finish(command.spawn().unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
#[ignore = "buildx is built by hack/tools/build compose"]
async fn buildx_builds_in_a_container_of_its_own() {
    if skip_without(Capability::DockerPlugins) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    buildkit_image(&machine, &image, &machine.path("buildkit"));
    let directory = machine.path("context");
    fs::create_dir_all(&directory).unwrap();
    let buildx = |arguments: &[&str]| {
        let arguments = [&["buildx"], arguments].concat();
        let mut command = machine.docker_with_plugins(&arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command.spawn().unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "docker {arguments:?}: {said}");
        said
    };
    // The registry of the image is on the machine's loopback.
    let host = ["--driver", "docker-container", "--driver-opt", "network=host"];
    buildx(&[&["create", "--name", "own", "--use"], &host[..]].concat());
    let text = format!(
        "FROM {image}\nRUN --mount=type=cache,target=/kept echo run >> /kept/runs && \
         cp /kept/runs /runs\nRUN --mount=type=secret,id=word cat /run/secrets/word > /word\n\
         COPY <<made /made\nof a heredoc\nmade\n"
    );
    fs::write(directory.join("Dockerfile"), text).unwrap();
    fs::write(directory.join("word"), "secret").unwrap();
    let secret = format!("id=word,src={}", directory.join("word").display());
    let build = ["build", "--progress", "plain", "--secret", &secret, "--load", "-t"];
    let context = directory.to_str().unwrap();
    buildx(&[&build[..], &["made", context]].concat());
    let printed = crate::run(&machine, &[], "made", "cat /runs /word /made");
    assert_eq!(printed, "run\nsecretof a heredoc");
    let said = buildx(&[&build[..], &["again", context]].concat());
    assert!(said.contains("CACHED"), "{said}");
    let of = async |name: &str| engine.get(&format!("/images/{name}/json")).await["Id"].clone();
    assert_eq!(of("made").await, of("again").await);
    buildx(&["rm", "own"]);
    let left = engine.get("/containers/json?all=1").await;
    assert_eq!(left, Value::Array(Vec::new()));
    machine.assert_clean().await;
}
