//! `RUN`: a container of the engine, whose output the client of the build reads.

use std::sync::Arc;

use anyhow::Context;
use berth_base::blocking::blocking;
use berth_dockerfile::Config;
use berth_image::WrittenLayer;
use berth_node::container::drain::Drain;
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::json;
use tokio::{net::unix::pipe, sync::watch};

use super::{
    failure::{BuildFailure, Result},
    output::Output,
};
use crate::{
    api::{create::CreateBody, host_config::HostConfig},
    container::{
        create, life,
        object::{Container, Streams},
    },
    engine::Engine,
    streams::session::{self, Theirs},
};

/// Bytes that are sent in one line.
const CHUNK: usize = 32 << 10;

/// Makes the container of a step, and tells the client.
///
/// # Errors
/// As `create`.
pub(crate) async fn make(
    engine: &Engine,
    config: Config,
    host: &HostConfig,
    output: &Output,
) -> Result<Arc<Container>> {
    let body = CreateBody { config, host_config: host.clone(), ..CreateBody::default() };
    let (container, warnings) = create::of_build(engine, body)?;
    engine.publish(&container, "create", json!({}));
    for warning in warnings {
        output.text(format!(" ---> [Warning] {warning}\n")).await;
    }
    output.text(format!(" ---> Running in {}\n", &container.id[..12])).await;
    Ok(container)
}

/// Runs it to its end.
///
/// # Errors
/// It cannot be started, or ends with another code than 0.
pub(crate) async fn run(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    output: &Output,
) -> Result<()> {
    let (own, theirs) = session::open((false, true, true)).context("open pipes")?;
    let Theirs { stdin, stdout, stderr } = theirs;
    let streams = Streams { stdin, stdout, stderr, left: Arc::default() };
    life::attach(engine, container, streams).await?;
    let ended = container.state().ended;
    let mut state = container.watch();
    start(engine, container).await?;
    // Its output ends when the shim closes it, whoever else has it.
    let (_open, never) = watch::channel(false);
    tokio::join!(
        copy(own.stdout.as_ref(), Kind::Out, output, never.clone()),
        copy(own.stderr.as_ref(), Kind::Error, output, never.clone()),
    );
    let last = match state.wait_for(|state| state.ended > ended).await {
        Ok(state) => state.last.clone(),
        Err(_) => container.state().last,
    };
    if last.exit_code == 0 {
        return Ok(());
    }
    let record = container.record();
    let command = record.config.cmd.clone().unwrap_or_default().join(" ");
    let code = last.exit_code;
    let text = format!("The command '{command}' returned a non-zero code: {code}");
    Err(BuildFailure { code: Some(code), ..BuildFailure::new(text) })
}

/// What it has written, as a layer.
///
/// # Errors
/// Those of the filesystem.
pub(crate) async fn layer(engine: &Engine, container: &Container) -> Result<Option<WrittenLayer>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = blocking(|| openat(CWD, container.directory.upper(), flags, Mode::empty()));
    let upper = upper.context("open what the step has written")?;
    Ok(engine.node.host.images.write_upper(upper).await?)
}

/// Starts it in a task of its own: a build that is cancelled must not end half of a start.
async fn start(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    let (engine, container) = (engine.clone(), container.clone());
    let starting = tokio::spawn(async move { life::start(&engine, &container).await });
    starting.await.context("start the container")??;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Out,
    Error,
}

/// Sends what a process writes. A character that is in two reads is sent whole, in the second.
async fn copy(
    pipe: Option<&pipe::Receiver>,
    kind: Kind,
    output: &Output,
    ended: watch::Receiver<bool>,
) {
    let Some(pipe) = pipe else { return };
    let mut drain = Drain::new(pipe, ended);
    let mut buffer = vec![0; CHUNK];
    let mut unsent = Vec::new();
    while let Ok(length @ 1..) = drain.read(&mut buffer).await {
        unsent.extend_from_slice(&buffer[..length]);
        let text = take_text(&mut unsent);
        send(&text, kind, output).await;
    }
    send(&String::from_utf8_lossy(&unsent), kind, output).await;
}

async fn send(text: &str, kind: Kind, output: &Output) {
    match kind {
        _ if text.is_empty() => {}
        Kind::Out => output.text(text).await,
        Kind::Error => output.error_text(text).await,
    }
}

/// Takes all but a character at the end that may go on in the next read.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    let rest = bytes.split_off(whole);
    String::from_utf8_lossy(&std::mem::replace(bytes, rest)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        let mut bytes = "aé".as_bytes()[..2].to_vec();
        assert_eq!(take_text(&mut bytes), "a");
        bytes.extend_from_slice(&"é".as_bytes()[1..]);
        assert_eq!(take_text(&mut bytes), "é");
        assert!(bytes.is_empty());
        let mut wrong = vec![b'a', 0xff, b'b'];
        assert_eq!(take_text(&mut wrong), "a\u{fffd}b");
    }
}
