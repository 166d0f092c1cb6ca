//! One more process in a running container, and ExecSync, which collects its output. Attach, which joins the first one.

use std::{fs, io, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use berth_shim::{
    layout as shim_layout,
    protocol::Call,
    record::{self, Failure},
    spec::{Process, Program, Spec},
};
use nix::sys::signal::Signal;
use rustix::io::Errno;
use tokio::{
    net::unix::pipe,
    sync::{oneshot, watch},
};

use super::{Container, actor::gone};
use crate::{
    error::{Error, Kind, Result},
    id::{self, ContainerId},
    machine::Machine,
    shim::Connection,
};

/// Of each stream; the rest is read and thrown away, so that the process does not block.
const MAX_OUTPUT: usize = 16 << 20;
/// A killed process is gone within milliseconds, but on a machine that has much else to do.
const DYING: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// A command that runs in a container.
#[derive(Debug)]
pub(crate) struct Execution {
    container: ContainerId,
    connection: Arc<Connection>,
    exec: String,
    exit: oneshot::Receiver<i32>,
    _request: RequestFile,
}

/// The request's file, removed whatever happens.
#[derive(Debug)]
struct RequestFile(PathBuf);

impl Drop for RequestFile {
    fn drop(&mut self) {
        if let Err(error) = gone(fs::remove_file(&self.0)) {
            tracing::warn!(path = %self.0.display(), %error, "remove an exec's request");
        }
    }
}

impl Container {
    /// Runs `command` and waits for its end; after `timeout` it is killed with all of its descendants.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs, `InvalidArgument` for what cannot be executed, `DeadlineExceeded`.
    pub(crate) async fn exec_sync(
        &self,
        machine: &Machine,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<Output> {
        if command.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("no command to execute"));
        }
        let null = OwnedFd::from(fs::File::open("/dev/null").context("open /dev/null")?);
        let (out_reader, out) = io::pipe().context("pipe")?;
        let (err_reader, err) = io::pipe().context("pipe")?;
        let (out, err) = (OwnedFd::from(out), OwnedFd::from(err));
        let mut execution = self.start_exec(machine, command, false, &[&null, &out, &err]).await?;
        drop((null, out, err));

        let (ended, end) = watch::channel(false);
        let collecting =
            async { tokio::join!(collect(out_reader.into(), end.clone()), collect(err_reader.into(), end.clone())) };
        let waiting = async {
            let code = match timeout {
                None => Ok(execution.ended().await),
                Some(timeout) => tokio::time::timeout(timeout, execution.ended()).await,
            };
            if code.is_err() {
                execution.kill().await;
            }
            ended.send_replace(true);
            code
        };
        let ((stdout, stderr), code) = tokio::join!(collecting, waiting);
        match code {
            Err(_) => {
                let limit = timeout.unwrap_or_default().as_secs_f32();
                Err(Error::new(
                    Kind::DeadlineExceeded,
                    format!("the command did not end within {limit} s and was killed"),
                ))
            }
            Ok(code) => Ok(Output { exit_code: code?, stdout: stdout?, stderr: stderr? }),
        }
    }

    /// Starts `command` with these streams: a terminal, or stdin, stdout and stderr.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs, `InvalidArgument` for what cannot be executed.
    pub(crate) async fn start_exec(
        &self,
        machine: &Machine,
        command: Vec<String>,
        tty: bool,
        streams: &[&OwnedFd],
    ) -> Result<Execution> {
        let connection = self.running()?;
        let exec = id::random_hex(8);
        let request = self.write_request(machine, &exec, command, tty)?;
        let exit = connection.exec_exit(&exec);
        connection
            .call(Call::Exec { exec: exec.clone() }, streams)
            .await
            .map_err(|error| refused(error, &self.meta.id))?;
        Ok(Execution { container: self.meta.id.clone(), connection, exec, exit, _request: request })
    }

    /// Joins `streams` to the first process: those of stdin, stdout and stderr that are true. The connection closes with it.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs.
    pub(crate) async fn attach(
        &self,
        (stdin, stdout, stderr): (bool, bool, bool),
        streams: &[&OwnedFd],
    ) -> Result<Arc<Connection>> {
        let connection = self.running()?;
        let call = Call::Attach { stdin, stdout, stderr };
        connection.call(call, streams).await.with_context(|| format!("attach to container {}", self.meta.id))?;
        Ok(connection)
    }

    /// Of the container's own terminal. It may have ended.
    pub(crate) async fn resize(&self, width: u16, height: u16) {
        let Ok(connection) = self.running() else { return };
        if let Err(error) = connection.call(Call::Resize { width, height }, &[]).await {
            tracing::debug!(container = %self.meta.id, "resize: {error:#}");
        }
    }

    fn write_request(
        &self,
        machine: &Machine,
        exec: &str,
        command: Vec<String>,
        tty: bool,
    ) -> anyhow::Result<RequestFile> {
        let dir = machine.layout.container(&self.meta.id);
        let spec: Spec =
            record::read(&dir.join(shim_layout::SPEC))?.record().context("the container's spec is damaged")?;
        let Program::Container(container) = spec.program else { return Err(anyhow!("not a container")) };
        let mut process = Process { args: command, tty, ..container.process };
        if tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        let path = dir.join(shim_layout::EXEC).join(format!("{exec}.json"));
        let request = RequestFile(path);
        record::write(&request.0, &process).context("write the exec's request")?;
        Ok(request)
    }
}

impl Execution {
    /// Its exit code, as soon as it has ended.
    ///
    /// # Errors
    /// `FailedPrecondition` when its container ended first.
    pub(crate) async fn ended(&mut self) -> Result<i32> {
        let ended = (&mut self.exit).await;
        ended.map_err(|_| Error::precondition(format!("container {} ended while the command ran", self.container)))
    }

    /// Kills it with all of its descendants. Who is told so does not find it any more, unless the kernel cannot end it.
    pub(crate) async fn kill(&mut self) {
        let call = Call::Signal { exec: Some(self.exec.clone()), signal: Signal::SIGKILL as i32 };
        if let Err(error) = self.connection.call(call, &[]).await {
            tracing::debug!("kill an exec: {error:#}");
        }
        let _ = tokio::time::timeout(DYING, &mut self.exit).await;
    }
}

fn refused(error: anyhow::Error, id: &ContainerId) -> Error {
    let kind = error.downcast_ref::<Failure>().map_or(Kind::Internal, |_| Kind::InvalidArgument);
    Error::new(kind, format!("execute in container {id}: {error:#}"))
}

/// Reads to the end of the stream, or, once the process ended, what is there: a daemonised child may hold it for ever.
async fn collect(reader: OwnedFd, mut ended: watch::Receiver<bool>) -> anyhow::Result<Vec<u8>> {
    let reader = pipe::Receiver::from_owned_fd(reader).context("watch a pipe")?;
    let (mut output, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    let mut keep = |bytes: &[u8]| output.extend_from_slice(&bytes[..bytes.len().min(MAX_OUTPUT - output.len())]);
    loop {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => break,
            ready = reader.readable() => ready.context("read a pipe")?,
        }
        match reader.try_read(&mut buffer) {
            Ok(0) => return Ok(output),
            Ok(length) => keep(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("read a pipe"),
        }
    }
    // What it said last is in the pipe by now, whether or not the event loop has heard of it.
    loop {
        match rustix::io::read(&reader, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(output),
            Ok(length) => keep(&buffer[..length]),
            Err(error) => return Err(error).context("read a pipe"),
        }
    }
}
