//! The example that compose is taught with: a page that counts in redis, by a worker that is built here,
//! by both builders.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{compose::buildkit_image, ready, succeed};
use berth_tests::{Capability, FakeRegistry, Machine, debian, eventually, finish, skip_without};

const YAML: &str = r#"
name: counter
services:
  redis:
    image: redis
    healthcheck: { test: redis-cli ping | grep -q PONG, interval: 200ms, retries: 50 }
    volumes: [data:/data]
  worker:
    build: { context: ., args: { BASE: IMAGE } }
    stop_signal: SIGKILL
    depends_on: { redis: { condition: service_healthy } }
    volumes: [pages:/pages]
  web:
    image: nginx
    depends_on: [worker]
    ports: ["8080:80"]
    volumes: [pages:/usr/share/nginx/html/hits:ro]
volumes: { data: {}, pages: {} }
"#;

const DOCKERFILE: &str = "ARG BASE\nFROM ${BASE}\nCOPY worker.sh /\nCMD [\"sh\", \"/worker.sh\"]\n";

/// Writes what redis has counted; a number comes as `:1`.
fn worker(word: &str) -> String {
    format!(
        "while :; do\n  echo {word} $(printf 'INCR hits\\r\\n' | nc -w 1 redis 6379) > /pages/new\n  \
         mv /pages/new /pages/index.html\n  sleep 0.2\ndone\n"
    )
}

struct Project<'a> {
    machine: &'a Machine,
    directory: PathBuf,
}

impl Project<'_> {
    fn command(&self, arguments: &[&str], builder: &[(&str, &str)]) -> Command {
        let file = self.directory.join("compose.yaml").display().to_string();
        let arguments = [&["compose", "--progress", "plain", "-f", &file], arguments].concat();
        let mut command = self.machine.docker_with_plugins(&arguments);
        command.envs(builder.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn compose(&self, arguments: &[&str], builder: &[(&str, &str)]) {
        let output = finish(self.command(arguments, builder).spawn().unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn get(&self, path: &str) -> String {
        self.machine.in_network(|| {
            let mut text = String::new();
            if let Ok(mut stream) = TcpStream::connect("127.0.0.1:8080") {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n");
                let _ = stream.read_to_string(&mut text);
            }
            text.split_once("\r\n\r\n").map_or(String::new(), |(_, page)| page.trim().to_owned())
        })
    }

    /// The number on the page, if it has this word.
    fn count(&self, word: &str) -> Option<u64> {
        let page = self.get("/hits/");
        page.strip_prefix(&format!("{word} :"))?.trim().parse().ok()
    }
}

#[tokio::test]
#[ignore = "compose is built by hack/tools/build compose"]
async fn a_page_counts_in_redis_by_a_worker_of_both_builders() {
    if skip_without(Capability::DockerPlugins) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let images = vec![("library/redis", debian::redis()), ("library/nginx", debian::nginx())];
    let _hub = FakeRegistry::hub(&machine, images);
    let project = Project { machine: &machine, directory: machine.path("counter") };
    project.write("compose.yaml", &YAML.replace("IMAGE", &image));
    project.write("Dockerfile", DOCKERFILE);
    project.write("worker.sh", &worker("hits"));

    // The classic builder.
    let classic = [("DOCKER_BUILDKIT", "0")];
    project.compose(&["up", "-d", "--wait", "--build"], &classic);
    eventually("the page", async || project.count("hits").is_some()).await;
    let before = project.count("hits");
    eventually("the next page", async || project.count("hits") > before).await;

    // Only what is built anew is made anew, and what redis has counted stays.
    let id = async |name: &str| engine.inspect(name).await["Id"].clone();
    let redis = id("counter-redis-1").await;
    let before = project.count("hits");
    project.write("worker.sh", &worker("visits"));
    project.compose(&["up", "-d", "--wait", "--build"], &classic);
    eventually("the new page", async || project.count("visits") > before).await;
    assert_eq!(id("counter-redis-1").await, redis);

    // BuildKit, in a container of its own.
    buildkit_image(&machine, &image, &machine.path("buildkit"));
    let create = ["buildx", "create", "--name", "own", "--driver", "docker-container"];
    let create = [&create[..], &["--driver-opt", "network=host"]].concat();
    let mut create = machine.docker_with_plugins(&create);
    assert!(create.stdout(Stdio::null()).status().unwrap().success());
    project.write("worker.sh", &worker("kit"));
    project.compose(&["build"], &[("BUILDX_BUILDER", "own")]);
    project.compose(&["up", "-d", "--wait"], &classic);
    eventually("the page of BuildKit's image", async || project.count("kit").is_some()).await;

    project.compose(&["down", "-v", "--rmi", "local"], &classic);
    assert!(machine.docker_with_plugins(&["buildx", "rm", "own"]).status().unwrap().success());
    assert_eq!(succeed(&machine, &["ps", "-aq"]), "");
    assert_eq!(succeed(&machine, &["volume", "ls", "-q"]), "");
    assert_eq!(succeed(&machine, &["images", "-q", "counter-worker"]), "");
    machine.assert_clean().await;
}
