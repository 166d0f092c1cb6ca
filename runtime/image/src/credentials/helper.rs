//! Runs programs that supply credentials: docker's credential helpers and the kubelet's plugins.
//! Both read a request from standard input and write a response to standard output.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::Context;
use berth_base::error::{Error, Kind, Result};
use tokio::{io::AsyncWriteExt, process::Command};

/// Long enough for a program that asks a cloud for a token.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `command` with `input`. `name` identifies it in errors. The caller checks the exit status.
///
/// # Errors
/// `DeadlineExceeded` after 30 s, `Internal` if the program cannot be started.
pub(super) async fn run(name: &str, mut command: Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A program that hangs must not outlive the pull that gave up on it.
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("execute {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // An error means that the program has closed its input or exited. Its output and exit
        // status say more than EPIPE would.
        let _ = stdin.write_all(input).await;
    }
    match tokio::time::timeout(TIMEOUT, child.wait_with_output()).await {
        Ok(output) => Ok(output.with_context(|| format!("execute {name}"))?),
        Err(_) => Err(Error::new(
            Kind::DeadlineExceeded,
            format!("{name}: no answer within {} s", TIMEOUT.as_secs()),
        )),
    }
}
