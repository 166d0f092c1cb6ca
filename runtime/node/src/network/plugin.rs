//! One run of a CNI plugin: environment and configuration in, the result or the plugin's own error
//! out (SPEC.md, section 2).

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use berth_base::{
    blocking::spawn_blocking,
    observe::{METRICS, TARGET, before, steps},
};
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

/// Bytes of output. A result is a page of JSON.
const MAX_OUTPUT: usize = 1 << 20;
/// Characters of standard error that go into an error.
const MAX_STDERR: usize = 500;
/// A plugin that is being installed is tried again for a second.
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// The configuration of one plugin, as JSON's keys and values.
pub(super) type Conf = BTreeMap<String, Value>;

/// Where plugins are installed, and how long they may take.
#[derive(Debug)]
pub(super) struct Plugins {
    directories: Vec<PathBuf>,
    timeout: Duration,
}

impl Plugins {
    pub(super) fn new(directories: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { directories, timeout }
    }

    /// The value of CNI_PATH.
    fn path(&self) -> String {
        let directories: Vec<String> =
            self.directories.iter().map(|directory| directory.display().to_string()).collect();
        directories.join(":")
    }

    /// The program of a plugin.
    ///
    /// # Errors
    /// It is not installed, or a directory does not answer.
    pub(super) async fn find(&self, plugin: &Conf) -> anyhow::Result<PathBuf> {
        let name = name_of(plugin).to_owned();
        // A name and never a path: the conf list chooses among what is installed, and runs nothing
        // else as root.
        if !berth_cni::is_identifier(&name) {
            bail!("{name:?} is not the name of a CNI plugin");
        }
        let candidates: Vec<PathBuf> =
            self.directories.iter().map(|directory| directory.join(&name)).collect();
        // In a thread, because a directory on a network filesystem may never answer.
        let search = spawn_blocking(|| candidates.into_iter().find(|path| path.is_file()));
        let path = self.path();
        let found = tokio::time::timeout(self.timeout, search).await.with_context(|| {
            let seconds = self.timeout.as_secs();
            format!("look for CNI plugin {name} in {path}: no answer in {seconds} s")
        })?;
        found?.ok_or_else(|| anyhow!("CNI plugin {name} is not in {path}"))
    }

    /// Runs one plugin and returns its output.
    ///
    /// # Errors
    /// What the plugin said; or that it was killed, because it took too long or wrote too much.
    pub(super) async fn run(
        &self,
        program: &Path,
        command: &str,
        environment: &[(&str, String)],
        conf: &Conf,
    ) -> anyhow::Result<Vec<u8>> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let begun = Instant::now();
        let span =
            tracing::info_span!(target: TARGET, "cni", otel.name = format!("{name} {command}"));
        match command {
            "ADD" => before(steps::cni::ADD)?,
            "DEL" => before(steps::cni::DEL)?,
            _ => {}
        }
        let mut plugin = Command::new(program);
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", self.path())
            .envs(environment.iter().map(|(key, value)| (*key, value.as_str())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // With what it starts itself, so that both are killed together.
            .process_group(0)
            // For one that is only just being started when its run is given up.
            .kill_on_drop(true);
        let exited = Box::pin(self.exchange(plugin, conf)).instrument(span).await;
        let result = exited.and_then(|output| result(command, output));
        METRICS.plugin(&name, command, begun.elapsed(), result.is_err());
        result.with_context(|| format!("CNI plugin {name} {command}"))
    }

    /// Feeds a plugin its configuration and collects its output.
    async fn exchange(&self, plugin: Command, conf: &Conf) -> anyhow::Result<Output> {
        let request = serde_json::to_vec(conf)?;
        // One timeout over all of it: a plugin may also hang with its output closed.
        let exchange = async {
            let mut child = spawn(plugin).await?;
            // Before anything is awaited: when the timeout drops this future, the group is killed.
            let group = Group(child.id());
            let stdin = child.stdin.take();
            let stdout = child.stdout.take();
            let stderr = child.stderr.take();
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A plugin that ends without reading it says why in its result.
                    let _ = stdin.write_all(&request).await;
                }
            };
            // All at once, since a pipe that is full would block the plugin.
            let ((), stdout, stderr) =
                tokio::join!(feed, read_bounded(stdout), read_bounded(stderr));
            let output = Output { stdout: stdout?, stderr: stderr?, status: child.wait().await? };
            group.keep();
            anyhow::Ok(output)
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| anyhow!("no answer in {} s: killed", self.timeout.as_secs()))?
    }
}

/// The process group of a plugin. It is killed when this is dropped: the plugin hangs, writes too
/// much, or its result is of no interest any more.
struct Group(Option<u32>);

impl Group {
    /// The plugin has ended by itself. If it left something running, that is meant to run.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It fails if the group is gone, which is what is wanted.
            let _ = killpg(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

pub(super) fn name_of(plugin: &Conf) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The output of a plugin that succeeded, or the error that it wrote in the place of a result.
fn result(command: &str, output: Output) -> anyhow::Result<Vec<u8>> {
    let error = serde_json::from_slice::<berth_cni::Error>(&output.stdout);
    match (output.status.success(), error) {
        // Some plugins write an error and exit with 0.
        (true, Ok(error)) if error.code != 0 => Err(error.into()),
        (true, _) => Ok(output.stdout),
        // A plugin from before 1.1.0 does not know these commands, and holds nothing against them.
        (false, Ok(error))
            if ["STATUS", "GC"].contains(&command) && error.code == code::INVALID_ENVIRONMENT =>
        {
            Ok(Vec::new())
        }
        (false, Ok(error)) => Err(error.into()),
        (false, Err(_)) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let stderr: String = stderr.trim().chars().take(MAX_STDERR).collect();
            bail!("{}, and no error object: {stderr}", output.status)
        }
    }
}

/// Starts a plugin. One that an installer is writing at this moment cannot be executed (ETXTBSY)
/// and is tried again, as libcni does.
async fn spawn(mut plugin: Command) -> io::Result<Child> {
    let mut attempts = 0;
    loop {
        let start = move || {
            let started = plugin.spawn();
            (plugin, started)
        };
        // In a thread, because the filesystem that the program is on may never answer.
        let (again, started) = spawn_blocking(start).await.map_err(io::Error::other)?;
        match started {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && attempts < BUSY_ATTEMPTS =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            started => return started,
        }
        plugin = again;
        attempts += 1;
    }
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // One byte more than is allowed, so that output of the full length is not taken for more.
        stream.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > MAX_OUTPUT {
        bail!("more than 1 MiB of output: killed");
    }
    Ok(bytes)
}
