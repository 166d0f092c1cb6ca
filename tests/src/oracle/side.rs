//! One of the two servers: it is asked the steps of a scenario, one after the other.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    http::{Request, Response, send},
    normal,
    scenario::{Body, Line, Scenario, Step},
};
use crate::{Layer, Machine, docker_tools};

/// What was answered to each request and command, as it is compared.
pub type Answers = Vec<(String, Value)>;

const VERSION: &str = "/v1.51";

#[derive(Debug)]
pub struct Side {
    machine: Machine,
    socket: PathBuf,
}

/// What the steps of one scenario hand on.
#[derive(Debug, Default)]
struct Progress {
    since: String,
    id: String,
    pending: Vec<(Line, Arc<AtomicBool>, JoinHandle<Result<Response>>)>,
}

impl Side {
    /// The server at `socket`, which runs in the machine.
    ///
    /// # Errors
    /// The directories for the client cannot be made.
    pub fn new(machine: Machine, socket: &Path) -> Result<Self> {
        // The commands run in a directory with the same content on both sides.
        for directory in ["work", "client"] {
            std::fs::create_dir_all(machine.path(directory))?;
        }
        Ok(Self { machine, socket: socket.to_owned() })
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the server answers.
    ///
    /// # Errors
    /// It does not within a minute.
    pub async fn serving(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let answer = self.ask("GET", "//_ping").await;
            if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if begun.elapsed().as_secs() > 60 {
                answer.context("it does not serve")?;
                anyhow::bail!("it does not serve");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Loads the images of an archive as the docker CLI does.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn load(&self, archive: Vec<u8>) -> Result<()> {
        let request = Request {
            method: "POST".to_owned(),
            path: format!("{VERSION}/images/load?quiet=1"),
            content_type: "application/x-tar".to_owned(),
            body: Some(archive),
            upgrade: false,
            input: None,
        };
        let answer = send(&self.socket, &request, Arc::default()).await?;
        let text = String::from_utf8_lossy(&answer.body);
        anyhow::ensure!(answer.status == 200 && !text.contains("error"), "load: {text}");
        Ok(())
    }

    /// Asks all of a scenario and removes what it leaves.
    pub async fn run(&self, scenario: &Scenario) -> Answers {
        let mut progress = Progress { since: now(), ..Progress::default() };
        let mut answers = Answers::new();
        let mut number = 0;
        for step in &scenario.steps {
            let (place, answer) = match self.step(step, &mut progress).await {
                Ok(Some(answered)) => answered,
                Ok(None) => continue,
                Err(error) => (format!("{step:?}"), json!({ "failed": format!("{error:#}") })),
            };
            // What is awaited in vain has no number: the other side numbers what follows alike.
            number += usize::from(!matches!(step, Step::Until { .. }));
            answers.push((format!("{}: {number} {place}", scenario.name), answer));
        }
        self.clear().await;
        answers
    }

    async fn step(&self, step: &Step, progress: &mut Progress) -> Result<Option<(String, Value)>> {
        match step {
            Step::Sleep(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
                Ok(None)
            }
            Step::Until { path, pointer, value } => {
                let reached = self.until(path, pointer, value).await;
                // Where it is reached, nothing is to be compared.
                Ok((!reached).then(|| (format!("UNTIL {path} {pointer} {value}"), json!(false))))
            }
            Step::Begin(line) => {
                let answered = Arc::<AtomicBool>::default();
                let (socket, request) = (self.socket.clone(), self.request(line, progress)?);
                let begun = answered.clone();
                let task = tokio::spawn(async move { send(&socket, &request, begun).await });
                progress.pending.push((line.clone(), answered, task));
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(None)
            }
            Step::End => {
                let (line, answered, task) = progress.pending.pop().context("END of nothing")?;
                let early = answered.load(Ordering::Relaxed);
                let mut answer = self.normal(&line, &task.await??);
                answer["head before the end"] = json!(early);
                Ok(Some((line.text, answer)))
            }
            Step::Request(line) => {
                let request = self.request(line, progress)?;
                let response = send(&self.socket, &request, Arc::default()).await?;
                if let Ok(body) = serde_json::from_slice::<Value>(&response.body)
                    && let Some(id) = body["Id"].as_str()
                {
                    id.clone_into(&mut progress.id);
                }
                Ok(Some((line.text.clone(), self.normal(line, &response))))
            }
            Step::Command(command) => Ok(Some((command.clone(), self.command(command).await?))),
        }
    }

    fn own(&self) -> String {
        self.machine.dir.path().display().to_string()
    }

    fn normal(&self, line: &Line, response: &Response) -> Value {
        let mut answer = normal::response(response, &self.own());
        if line.shape {
            answer["body"] = normal::shape(answer["body"].take());
        }
        answer
    }

    fn request(&self, line: &Line, progress: &Progress) -> Result<Request> {
        let filled = |text: &str| {
            text.replace("$id", &progress.id)
                .replace("$since", &progress.since)
                .replace("$now", &now())
                .replace("$own", &self.own())
        };
        let upgrade = line.method == "UPGRADE";
        let (body, content_type) = match &line.body {
            None => (None, ""),
            Some(Body::Text(text)) => (Some(filled(text).into_bytes()), "application/json"),
            Some(Body::Tar { name, content }) => {
                let tar = Layer::new().file(name, content.as_bytes()).bytes();
                (Some(tar), "application/x-tar")
            }
        };
        Ok(Request {
            method: if upgrade { "POST".to_owned() } else { line.method.clone() },
            path: versioned(&escaped(&filled(&line.path))),
            content_type: line.content_type.clone().unwrap_or_else(|| content_type.to_owned()),
            body,
            upgrade,
            input: line.input.clone(),
        })
    }

    async fn ask(&self, method: &str, path: &str) -> Result<Response> {
        let request = Request {
            method: method.to_owned(),
            path: versioned(&escaped(path)),
            content_type: String::new(),
            body: None,
            upgrade: false,
            input: None,
        };
        send(&self.socket, &request, Arc::default()).await
    }

    /// Whether the value came within ten seconds.
    async fn until(&self, path: &str, pointer: &str, value: &str) -> bool {
        let begun = Instant::now();
        while begun.elapsed().as_secs() < 10 {
            if let Ok(answer) = self.ask("GET", path).await
                && let Ok(body) = serde_json::from_slice::<Value>(&answer.body)
                && let Some(found) = body.pointer(pointer)
                && shown(found) == value
            {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Runs a command line with the docker CLI of `hack/tools/build docker`.
    async fn command(&self, line: &str) -> Result<Value> {
        let search =
            format!("{}:{}", docker_tools().canonicalize()?.display(), std::env::var("PATH")?);
        let mut command = self.machine.command("sh");
        // nsenter(1) goes to the root directory of the mount namespace.
        command
            .args(["-c", &format!("cd {} && {line}", self.machine.path("work").display())])
            .env("PATH", search)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.machine.path("client"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        let Ok(output) = output else { return Ok(json!({ "exit": "none within a minute" })) };
        let output = output?;
        let lines = |bytes: &[u8]| -> Value {
            let text = normal::text(&String::from_utf8_lossy(bytes), &self.own());
            // What is JSON is compared by its fields.
            match serde_json::from_str::<Value>(&text) {
                Ok(value) if value.is_object() || value.is_array() => {
                    normal::value("", value, &self.own())
                }
                _ => text.lines().collect(),
            }
        };
        Ok(json!({
            "exit": output.status.code(),
            "stdout": lines(&output.stdout),
            "stderr": lines(&output.stderr),
        }))
    }

    async fn clear(&self) {
        let Ok(answer) = self.ask("GET", "/containers/json?all=1").await else { return };
        let list: Vec<Value> = serde_json::from_slice(&answer.body).unwrap_or_default();
        for id in list.iter().filter_map(|container| container["Id"].as_str()) {
            let _ = self.ask("DELETE", &format!("/containers/{id}?force=1&v=1")).await;
        }
    }
}

fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

fn versioned(path: &str) -> String {
    match path.strip_prefix("//") {
        Some(bare) => format!("/{bare}"),
        None if path.starts_with("/v1.") || path.starts_with("/v9") => path.to_owned(),
        None => format!("{VERSION}{path}"),
    }
}

/// What a path may not have is escaped, so that scenarios can have JSON in it.
fn escaped(path: &str) -> String {
    let mut escaped = String::new();
    for c in path.chars() {
        if c.is_ascii_graphic() && !"{}\"[]^|<>\\`".contains(c) {
            escaped.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                escaped += &format!("%{byte:02X}");
            }
        }
    }
    escaped
}

/// A JSON value as a scenario names it: text without quotes.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_get_a_version_and_lose_what_they_may_not_have() {
        assert_eq!(versioned("/info"), "/v1.51/info");
        assert_eq!(versioned("//info"), "/info");
        assert_eq!(versioned("/v1.24/info"), "/v1.24/info");
        assert_eq!(escaped("/x?f={\"a\":1}"), "/x?f=%7B%22a%22:1%7D");
    }
}
