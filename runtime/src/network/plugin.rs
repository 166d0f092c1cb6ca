//! One run of a CNI plugin: environment and configuration in, result or the plugin's own error out.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use berth_cni::code;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};
use tracing::Instrument;

use crate::telemetry::{METRICS, TARGET};

/// A result is a page of JSON.
const MAX_OUTPUT: usize = 1 << 20;
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What a plugin reads.
pub(super) type Conf = BTreeMap<String, Value>;

/// Where plugins are.
#[derive(Debug)]
pub(super) struct Plugins {
    directories: Vec<PathBuf>,
    timeout: Duration,
}

impl Plugins {
    /// A plugin that takes longer than `timeout` hangs.
    pub(super) fn new(directories: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { directories, timeout }
    }

    /// As CNI_PATH.
    fn path(&self) -> String {
        let places: Vec<String> = self.directories.iter().map(|directory| directory.display().to_string()).collect();
        places.join(":")
    }

    pub(super) fn find(&self, plugin: &Conf) -> anyhow::Result<PathBuf> {
        let name = name_of(plugin);
        // A name and never a path: the configuration picks among what is installed.
        if !berth_cni::is_identifier(name) {
            bail!("{name:?} is not the name of a CNI plugin");
        }
        let found = self.directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| anyhow!("CNI plugin {name} is not in {}", self.path()))
    }

    /// Runs one plugin; its output, or its error in its own words.
    pub(super) async fn run(
        &self,
        program: &Path,
        command: &str,
        environment: &[(&str, String)],
        conf: &Conf,
    ) -> anyhow::Result<Vec<u8>> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let begun = Instant::now();
        let span = tracing::info_span!(target: TARGET, "cni", otel.name = format!("{name} {command}"));
        let mut plugin = Command::new(program);
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", self.path())
            .envs(environment.iter().map(|(key, value)| (*key, value.as_str())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let answered = Box::pin(self.converse(&mut plugin, conf)).instrument(span).await;
        let answered = answered.and_then(|output| answer(command, output));
        METRICS.plugin(&name, command, begun.elapsed(), answered.is_err());
        answered.with_context(|| format!("CNI plugin {name} {command}"))
    }

    /// One question and its answer, for as long as a plugin may take.
    async fn converse(&self, plugin: &mut Command, conf: &Conf) -> anyhow::Result<Output> {
        let request = serde_json::to_vec(conf)?;
        let mut child = spawn(plugin).await?;
        let group = Group(child.id());
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let conversation = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A plugin that does not read has its own answer.
                    let _ = stdin.write_all(&request).await;
                }
            };
            let ((), stdout, stderr) = tokio::join!(feed, read_bounded(stdout), read_bounded(stderr));
            anyhow::Ok(Output { stdout: stdout?, stderr: stderr?, status: child.wait().await? })
        };
        let output = tokio::time::timeout(self.timeout, conversation)
            .await
            .map_err(|_| anyhow!("no answer in {} s: killed", self.timeout.as_secs()))
            .and_then(|result| result)?;
        group.keep();
        Ok(output)
    }
}

/// A plugin and what it started: killed when dropped, because it hung, said too much, or nobody waits for it any more.
struct Group(Option<u32>);

impl Group {
    /// It has ended by itself; what it left running is meant to.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Not there any more is as good.
            let _ = killpg(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

pub(super) fn name_of(plugin: &Conf) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn answer(command: &str, output: Output) -> anyhow::Result<Vec<u8>> {
    let error = serde_json::from_slice::<berth_cni::Error>(&output.stdout);
    match (output.status.success(), error) {
        // An error that came with the wrong exit status is one still.
        (true, Ok(error)) if error.code != 0 => Err(error.into()),
        (true, _) => Ok(output.stdout),
        // Plugins before 1.1.0 know neither, and have nothing against them.
        (false, Ok(error)) if ["STATUS", "GC"].contains(&command) && error.code == code::INVALID_ENVIRONMENT => {
            Ok(Vec::new())
        }
        (false, Ok(error)) => Err(error.into()),
        (false, Err(_)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}, and no error object: {}", output.status, said.trim().chars().take(500).collect::<String>())
        }
    }
}

/// A plugin that an installer writes at this moment is there a moment later, as libcni has it.
async fn spawn(plugin: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY_ATTEMPTS {
        match plugin.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => tokio::time::sleep(BUSY_PAUSE).await,
            result => return result,
        }
    }
    plugin.spawn()
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > MAX_OUTPUT {
        bail!("more than 1 MiB of output: killed");
    }
    Ok(bytes)
}
