//! A client of the Docker Engine API: plain requests, and the real docker CLI.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    finish::{LIMIT, Watchdog, finish},
    machine::Machine,
};

/// How long an event may take: the longest delay in the tests is a health check's on a busy machine.
const EVENT_LIMIT: Duration = Duration::from_secs(60);

/// The engine of one machine.
#[derive(Clone, Debug)]
pub struct Engine {
    client: reqwest::Client,
    pub socket: PathBuf,
}

/// The lines of a machine's configuration with which its daemon serves the API at `Engine::of`.
pub fn config() -> String {
    "[engine]\nlisten = \"$DIR/docker.sock\"".to_owned()
}

fn socket(machine: &Machine) -> PathBuf {
    machine.path("docker.sock")
}

impl Engine {
    pub fn of(machine: &Machine) -> Self {
        Self::at(socket(machine))
    }

    /// The engine that serves at this socket.
    pub fn at(socket: PathBuf) -> Self {
        let client = reqwest::Client::builder()
            .unix_socket(socket.clone())
            .timeout(LIMIT)
            .build()
            .expect("a client without TLS");
        Self { client, socket }
    }

    /// Sends a request, and returns the status with the JSON of the answer: `Null` for an empty
    /// one, and a string for what is no JSON.
    ///
    /// # Panics
    /// Nobody answers.
    pub async fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let answered = self.try_request(method, path, body).await;
        answered.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// As `request`.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn try_request(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::Result<(u16, Value)> {
        let method = method.parse().expect("a method");
        let request = self.client.request(method, format!("http://docker{path}"));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        let value = match text.is_empty() {
            true => Value::Null,
            false => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        };
        Ok((status, value))
    }

    /// POSTs a tar, and returns the status and the answer.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn send_tar(&self, path: &str, tar: Vec<u8>) -> reqwest::Result<(u16, Value)> {
        let (status, text) = self.try_send(path, "application/x-tar", tar).await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Sends bytes, and returns the status with the text of the answer.
    ///
    /// # Panics
    /// Nobody answers.
    pub async fn send(&self, path: &str, content_type: &str, body: Vec<u8>) -> (u16, String) {
        let answered = self.try_send(path, content_type, body).await;
        answered.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// As `send`.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn try_send(
        &self,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> reqwest::Result<(u16, String)> {
        let request = self.client.post(format!("http://docker{path}"));
        let answer = request.header("content-type", content_type).body(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await?))
    }

    /// A GET that succeeds.
    ///
    /// # Panics
    /// It does not.
    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.request("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    /// A POST that succeeds.
    ///
    /// # Panics
    /// It does not.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.request("POST", path, Some(body)).await;
        assert!((200..300).contains(&status), "{path}: {status} {value}");
        value
    }

    /// Creates a container from `body`, and returns its id.
    pub async fn create(&self, name: &str, body: Value) -> String {
        let answer = self.post(&format!("/containers/create?name={name}"), body).await;
        answer["Id"].as_str().expect("an id").to_owned()
    }

    pub async fn start(&self, name: &str) {
        self.post(&format!("/containers/{name}/start"), Value::Null).await;
    }

    /// Waits until it does not run, and returns its exit code.
    pub async fn wait(&self, name: &str) -> i64 {
        let answer = self.post(&format!("/containers/{name}/wait"), Value::Null).await;
        answer["StatusCode"].as_i64().expect("a code")
    }

    pub async fn inspect(&self, name: &str) -> Value {
        self.get(&format!("/containers/{name}/json")).await
    }

    /// Waits for the `count`th event with `action` of a container since this daemon has started, and
    /// returns the actions of the container's events up to it.
    ///
    /// # Panics
    /// It does not come.
    pub async fn events_until(&self, name: &str, action: &str, count: usize) -> Vec<String> {
        let filters = format!("{{\"container\":[\"{name}\"],\"type\":[\"container\"]}}");
        let request = self.client.get("http://docker/events");
        let request = request.query(&[("since", "1"), ("filters", &filters)]);
        let mut answer = request.send().await.expect("events");
        let mut seen = Vec::new();
        let mut unread = Vec::new();
        let reading = async {
            while seen.iter().filter(|seen| *seen == action).count() < count {
                unread.extend(answer.chunk().await.expect("read events").expect("more events"));
                while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = unread.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line).expect("an event");
                    seen.push(event["Action"].as_str().expect("an action").to_owned());
                }
            }
        };
        let read = tokio::time::timeout(EVENT_LIMIT, reading).await;
        assert!(read.is_ok(), "{action} of {name} after {seen:?}");
        seen
    }

    pub async fn remove(&self, name: &str) {
        let (status, value) =
            self.request("DELETE", &format!("/containers/{name}?force=1&v=1"), None).await;
        assert_eq!(status, 204, "{value}");
    }
}

/// The real docker CLI, if it is there: `BERTH_DOCKER`, else target/tools/docker/docker, else on PATH.
pub fn docker() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BERTH_DOCKER") {
        return Some(path.into());
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/docker/docker");
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|dir| dir.join("docker")).collect::<Vec<_>>()
    });
    std::iter::once(built).chain(on_path).find(|path| path.is_file())
}

/// The directory with compose, buildx and BuildKit, if they are built.
pub fn docker_plugins() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/compose");
    built.canonicalize().ok().filter(|built| built.join("stamp").is_file())
}

impl Machine {
    /// The docker CLI with the plugins compose and buildx, to be run.
    ///
    /// # Panics
    /// They are not built.
    pub fn docker_with_plugins(&self, arguments: &[&str]) -> Command {
        let plugins = docker_plugins().expect("hack/tools/build compose");
        let config = self.path("docker-config");
        let links = config.join("cli-plugins");
        if !links.exists() {
            fs::create_dir_all(&links).expect("make the directory of plugins");
            for name in ["docker-compose", "docker-buildx"] {
                symlink(plugins.join(name), links.join(name)).expect("link a plugin");
            }
        }
        let mut command = self.docker_command(arguments);
        command.env("DOCKER_CONFIG", config);
        command
    }

    /// Runs the docker CLI with these arguments against the machine's engine.
    ///
    /// # Panics
    /// It cannot be run, or hangs.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        let mut command = self.docker_command(arguments);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(piped.spawn().expect("run docker"))
    }

    /// The docker CLI with these arguments, to be run.
    ///
    /// # Panics
    /// There is none.
    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(docker().expect(NO_DOCKER));
        command.args(arguments);
        self.point_docker(&mut command);
        command
    }

    /// Runs a shell script, in the machine's directory, that calls docker, and stops at the first
    /// command that fails. Returns what it prints.
    ///
    /// # Panics
    /// It fails, or hangs.
    pub fn docker_script(&self, script: &str) -> String {
        let program = docker().expect(NO_DOCKER);
        let programs = program.parent().expect("a path of a file").display();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = self.command("sh");
        command.args(["-ec", &format!("cd {}; {script}", self.dir.path().display())]);
        self.point_docker(&mut command);
        command.env("PATH", format!("{programs}:{path}")).env("DOCKER_BUILDKIT", "0");
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(piped.spawn().expect("run sh"));
        let printed = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{printed}\n{said}");
        printed
    }

    /// Runs `docker LINE`, as a shell reads it, on a terminal with 80 columns and 24 rows, and types
    /// `keys` when it shows something, or at once if there is nothing to be typed.
    ///
    /// # Panics
    /// It cannot be run, or hangs.
    pub fn on_terminal(&self, line: &str, keys: &[u8]) -> Output {
        let program = docker().expect(NO_DOCKER);
        // `attach` shows nothing by itself, so that its keys go first, and have to wait for it as
        // they are.
        let first = if line.starts_with("attach ") { "stty raw -echo; printf .;" } else { "" };
        let line = format!("stty cols 80 rows 24; {first} {} {line}", program.display());
        let mut command = self.command("script");
        command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        self.point_docker(&mut command);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("run script");
        let watchdog = Watchdog::of(&child);
        let mut shown = Vec::new();
        let mut screen = child.stdout.take().expect("it is piped");
        let mut keyboard = child.stdin.take().expect("it is piped");
        if !keys.is_empty() {
            let mut byte = [0];
            if screen.read(&mut byte).expect("read") == 1 {
                shown.push(byte[0]);
            }
            keyboard.write_all(keys).expect("type");
        }
        screen.read_to_end(&mut shown).expect("read");
        drop(keyboard);
        let output = child.wait_with_output().expect("wait for script");
        let output = Output { stdout: shown, ..output };
        watchdog.end(&output);
        output
    }

    fn point_docker(&self, command: &mut Command) {
        command
            .env("DOCKER_HOST", format!("unix://{}", socket(self).display()))
            .env("DOCKER_CONFIG", self.path("docker-config"))
            .env("TERM", "xterm");
    }
}

const NO_DOCKER: &str = "a docker CLI: hack/tools/build docker";
