//! ExecSync: one more process in a running container, its output collected.

use std::{fs, io, os::fd::OwnedFd, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};
use berth_shim::{
    layout as shim_layout,
    protocol::Call,
    record::{self, Failure},
    spec::{Process, Program, Spec},
};
use nix::sys::signal::Signal;
use rustix::io::Errno;
use tokio::{net::unix::pipe, sync::watch};

use super::{Container, actor::gone};
use crate::{
    error::{Error, Kind, Result},
    id,
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

/// The request's file, removed whatever happens.
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
        let connection = self.running()?;
        let exec = id::random_hex(8);
        let _request = self.write_request(machine, &exec, command)?;
        let null = OwnedFd::from(fs::File::open("/dev/null").context("open /dev/null")?);
        let (out_reader, out) = io::pipe().context("pipe")?;
        let (err_reader, err) = io::pipe().context("pipe")?;
        let (out, err) = (OwnedFd::from(out), OwnedFd::from(err));
        let mut exit = connection.exec_exit(&exec);
        connection
            .call(Call::Exec { exec: exec.clone() }, &[&null, &out, &err])
            .await
            .map_err(|error| refused(error, &self.meta.id))?;
        drop((null, out, err));

        let (ended, end) = watch::channel(false);
        let collecting =
            async { tokio::join!(collect(out_reader.into(), end.clone()), collect(err_reader.into(), end.clone())) };
        let waiting = async {
            let code = match timeout {
                None => Ok((&mut exit).await),
                Some(timeout) => tokio::time::timeout(timeout, &mut exit).await,
            };
            if code.is_err() {
                kill(&connection, exec).await;
                // Who is told that it was killed does not find it any more, unless the kernel cannot end it.
                let _ = tokio::time::timeout(DYING, exit).await;
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
            Ok(Err(_)) => Err(Error::precondition(format!("container {} ended while the command ran", self.meta.id))),
            Ok(Ok(exit_code)) => Ok(Output { stdout: stdout?, stderr: stderr?, exit_code }),
        }
    }

    fn write_request(&self, machine: &Machine, exec: &str, command: Vec<String>) -> anyhow::Result<RequestFile> {
        let dir = machine.layout.container(&self.meta.id);
        let spec: Spec =
            record::read(&dir.join(shim_layout::SPEC))?.record().context("the container's spec is damaged")?;
        let Program::Container(container) = spec.program else { return Err(anyhow!("not a container")) };
        let process = Process { args: command, tty: false, ..container.process };
        let path = dir.join(shim_layout::EXEC).join(format!("{exec}.json"));
        let request = RequestFile(path);
        record::write(&request.0, &process).context("write the exec's request")?;
        Ok(request)
    }
}

async fn kill(connection: &Connection, exec: String) {
    let call = Call::Signal { exec: Some(exec), signal: Signal::SIGKILL as i32 };
    if let Err(error) = connection.call(call, &[]).await {
        tracing::debug!("kill an exec: {error:#}");
    }
}

fn refused(error: anyhow::Error, id: &crate::id::ContainerId) -> Error {
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
