//! Processes in a running container: execs, ExecSync, which collects the output of one, and attach,
//! which joins the streams of the first process.

use std::{
    fs,
    io::{self, Seek, Write},
    iter,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use berth_base::{
    error::{Error, Kind, Result},
    id::{self, ContainerId},
    observe::{step, steps},
};
use berth_shim::{
    exec_request::ExecRequest,
    protocol::{Call, ENDED, Response},
    record::Failure,
};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    signal::Signal,
};
use tokio::{
    net::unix::pipe,
    sync::{oneshot, watch},
};

use super::{drain::Drain, lifecycle::describe, object::Container};
use crate::shim::{self, Connection, NoResponse};

/// How much of each stream ExecSync returns, in bytes, as CRI has it (`ExecSyncResponse`). The rest
/// is read and dropped, so that the process does not block.
const MAX_OUTPUT: usize = 16 << 20;
/// The most that one read takes from a pipe, in bytes.
const CHUNK: usize = 64 << 10;
/// How long a killed process may take to end. As a rule that is milliseconds, but the machine may
/// be busy with much else.
const DYING: Duration = Duration::from_secs(1);

/// What a command that has ended leaves.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// 128 + signal for one that was killed.
    pub exit_code: i32,
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct Execution {
    container: ContainerId,
    connection: Arc<Connection>,
    exec: String,
    exit: oneshot::Receiver<i32>,
    /// Of its program, as the host counts; 0 where the shim did not say it.
    pub pid: u32,
}

impl Container {
    /// ExecSync: runs a command and waits for its end. After `timeout` it is killed with all of its
    /// descendants.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs, `InvalidArgument` for what cannot be
    /// executed, `DeadlineExceeded`.
    pub async fn exec_sync(
        &self,
        request: ExecRequest,
        timeout: Option<Duration>,
    ) -> Result<Output> {
        if request.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("no command to execute"));
        }
        let null = OwnedFd::from(fs::File::open("/dev/null").context("open /dev/null")?);
        let (out_reader, out) = io::pipe().context("pipe")?;
        let (err_reader, err) = io::pipe().context("pipe")?;
        let (out, err) = (OwnedFd::from(out), OwnedFd::from(err));
        let limit =
            timeout.map_or(shim::RESPONSE_LIMIT, |timeout| timeout.min(shim::RESPONSE_LIMIT));
        let mut execution = self.start_exec_within(limit, &request, &[&null, &out, &err]).await?;
        // The process has copies of its own. As long as these are open the pipes do not end.
        drop((null, out, err));

        let (ended, end) = watch::channel(false);
        // Both pipes are read while the process runs: it would block on the one that is full.
        let collecting = async {
            tokio::join!(
                collect(out_reader.into(), end.clone()),
                collect(err_reader.into(), end.clone())
            )
        };
        let wait = async {
            let code = match timeout {
                None => Ok(execution.ended().await),
                Some(timeout) => tokio::time::timeout(timeout, execution.ended()).await,
            };
            if code.is_err() {
                execution.kill().await;
            }
            Result::<_>::Ok(code)
        };
        let waiting = async {
            let code = step(steps::exec::WAIT, wait).await;
            ended.send_replace(true);
            code
        };
        let ((stdout, stderr), code) = tokio::join!(collecting, waiting);
        match code? {
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

    /// Starts a command with these streams: one terminal if it asks for one, otherwise stdin,
    /// stdout and stderr.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs, `InvalidArgument` for what cannot be
    /// executed.
    pub async fn start_exec(
        &self,
        request: &ExecRequest,
        streams: &[&OwnedFd],
    ) -> Result<Execution> {
        self.start_exec_within(shim::RESPONSE_LIMIT, request, streams).await
    }

    /// As `start_exec`, given up after `limit`.
    async fn start_exec_within(
        &self,
        limit: Duration,
        request: &ExecRequest,
        streams: &[&OwnedFd],
    ) -> Result<Execution> {
        let deadline = Instant::now() + limit;
        let connection = self.running()?;
        // The shim may be one of another build, which outlived an upgrade.
        let version =
            connection.version(limit).await.map_err(|error| refused(error, &self.meta.id))?;
        let document = request.encode(version, || self.first_process())?;
        let file = in_memory(&document)?;
        let exec = id::random_hex(8);
        // Before the request is sent: a short command may have ended when its reply is read.
        let exit = connection.exec_exit(&exec);
        let descriptors: Vec<&OwnedFd> = iter::once(&file).chain(streams.iter().copied()).collect();
        let call = Call::Exec { exec: exec.clone() };
        let limit = deadline.saturating_duration_since(Instant::now());
        let called =
            step(steps::exec::START, connection.call_within(limit, call, &descriptors)).await;
        let container = self.meta.id.clone();
        let mut execution = Execution { container, connection, exec, exit, pid: 0 };
        match called {
            Ok(response) => {
                if let Response::Pid(pid) = response {
                    execution.pid = pid;
                }
                Ok(execution)
            }
            Err(error) => {
                if error.is::<NoResponse>() {
                    // The request is in the socket, so a shim that was stopped and goes on will
                    // still start the command. The signal behind it in the queue kills it then.
                    tokio::spawn(async move { execution.kill_later().await });
                }
                Err(refused(error, &self.meta.id))
            }
        }
    }

    /// Joins `streams` to the first process: those of stdin, stdout and stderr that are true. The
    /// connection that is returned closes when that process has ended.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs.
    pub async fn attach(
        &self,
        (stdin, stdout, stderr): (bool, bool, bool),
        streams: &[&OwnedFd],
    ) -> Result<Arc<Connection>> {
        let connection = self.running()?;
        let call = Call::Attach { stdin, stdout, stderr };
        connection
            .call(call, streams)
            .await
            .with_context(|| format!("attach to container {}", self.meta.id))?;
        Ok(connection)
    }

    /// Ends the standard input of the first process.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs.
    pub async fn close_stdin(&self) -> Result<()> {
        self.running()?.call(Call::CloseStdin, &[]).await?;
        Ok(())
    }

    /// Tells the size of the client's window to the container's own terminal.
    pub async fn resize(&self, width: u16, height: u16) {
        // The container may have ended meanwhile, and nothing depends on a size.
        let Ok(connection) = self.running() else { return };
        if let Err(error) = connection.call(Call::Resize { width, height }, &[]).await {
            tracing::debug!(container = %self.meta.id, "resize its terminal: {error:#}");
        }
    }
}

/// A file in memory: a probe must not fail because a disk is full, and there is nothing to delete
/// afterwards.
fn in_memory(document: &[u8]) -> anyhow::Result<OwnedFd> {
    let mut file =
        fs::File::from(memfd_create("exec", MFdFlags::MFD_CLOEXEC).context("memfd_create")?);
    file.write_all(document).context("write the exec's request")?;
    // The shim reads through a copy of this descriptor, which shares its offset (dup(2)).
    file.rewind().context("rewind the exec's request")?;
    Ok(file.into())
}

impl Execution {
    /// Waits for the end of the command, and returns its exit code.
    ///
    /// # Errors
    /// `FailedPrecondition` when its container ended first.
    pub async fn ended(&mut self) -> Result<i32> {
        let ended = (&mut self.exit).await;
        ended.map_err(|_| {
            Error::precondition(format!("container {} ended while the command ran", self.container))
        })
    }

    /// Kills the command with all of its descendants, and waits for its end: a caller that is told
    /// of a timeout finds no process any more, unless the kernel cannot end it.
    pub async fn kill(&mut self) {
        if let Err(error) = self.connection.call_within(DYING, self.sigkill(), &[]).await {
            tracing::debug!(container = %self.container, "kill an exec: {error:#}");
        }
        let _ = tokio::time::timeout(DYING, &mut self.exit).await;
    }

    /// Kills the command as soon as its shim responds again, for as long as the container exists.
    async fn kill_later(self) {
        if let Err(error) = self.connection.call_within(Duration::MAX, self.sigkill(), &[]).await {
            tracing::debug!(container = %self.container, "kill an exec: {error:#}");
        }
    }

    fn sigkill(&self) -> Call {
        Call::Signal { exec: Some(self.exec.clone()), signal: Signal::SIGKILL as i32 }
    }
}

/// The status of an exec that did not start. That the container ended meanwhile is nobody's fault.
fn refused(error: anyhow::Error, id: &ContainerId) -> Error {
    let ended = error.downcast_ref::<Failure>().is_some_and(|failure| failure.step == ENDED);
    let error = if ended {
        Error::precondition(ENDED)
    } else if let Some(mute) = error.downcast_ref::<NoResponse>() {
        Error::new(Kind::DeadlineExceeded, mute.to_string())
    } else {
        describe(error)
    };
    error.during(format!("execute in container {id}"))
}

/// Keeps what a process writes, up to `MAX_OUTPUT`.
async fn collect(reader: OwnedFd, ended: watch::Receiver<bool>) -> anyhow::Result<Vec<u8>> {
    let pipe = pipe::Receiver::from_owned_fd(reader).context("watch a pipe")?;
    let mut drain = Drain::new(&pipe, ended);
    let mut output = Vec::new();
    let mut buffer = vec![0; CHUNK];
    while let length @ 1.. = drain.read(&mut buffer).await.context("read a pipe")? {
        let room = MAX_OUTPUT - output.len();
        output.extend_from_slice(&buffer[..length.min(room)]);
    }
    Ok(output)
}
