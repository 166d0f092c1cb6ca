//! The probes of a container's health check, for as long as a run lasts.

use std::{fs::File, os::fd::OwnedFd, time::Duration};

use anyhow::Context;
use berth_base::{
    clock::{now, since},
    error::Result,
    id,
};
use berth_node::container::{self as node, Execution, drain::Drain, stdio};
use berth_shim::exec_request::{ExecRequest, Overrides};
use serde_json::json;
use tokio::{net::unix::pipe, sync::watch};

use crate::{
    container::{object::Container, state::State},
    engine::Engine,
    health::{Health, Output, Probe, ProbeResult, Status},
};

/// The exit code of a probe that did not come to its end.
const NO_RESULT: i32 = -1;
/// That of a process that was killed.
const KILLED: i32 = 137;
/// The most that one read takes of a probe's output, in bytes.
const CHUNK: usize = 4 << 10;

/// Probes a run, if that is asked for. It never ends by itself.
pub(super) async fn watch(engine: &Engine, container: &Container, run: &node::Container) -> ! {
    let config = container.record().config.healthcheck.clone();
    let Some(probe) = config.as_ref().and_then(Probe::of) else { std::future::pending().await };
    loop {
        wait(container, &probe).await;
        let result = try_probe(engine, container, run, &probe).await;
        // One that was frozen in the middle says nothing.
        if !container.state().is_paused() {
            take(engine, container, &probe, result);
        }
    }
}

/// Waits until a probe is due, and for as long as the container is paused.
async fn wait(container: &Container, probe: &Probe) {
    let mut state = container.watch();
    loop {
        let delay = {
            let state = state.borrow();
            let status =
                state.last.health.as_ref().map_or(Status::Starting, |health| health.status);
            probe.delay(status, since(state.last.started_at))
        };
        let paused = state.wait_for(State::is_paused);
        if tokio::time::timeout(delay, paused).await.is_err() {
            return;
        }
        // It fails only when the sender is gone, which is in the container.
        let _ = state.wait_for(|state| !state.is_paused()).await;
    }
}

/// Runs a probe.
async fn try_probe(
    engine: &Engine,
    container: &Container,
    run: &node::Container,
    probe: &Probe,
) -> ProbeResult {
    let start = now();
    let shell = container.record().config.shell.clone().unwrap_or_default();
    let ran = match probe.command(&container.id, &shell) {
        Ok(command) => execute(engine, container, run, &command, probe.timeout).await,
        Err(error) => Err(error),
    };
    let (exit_code, output) = ran.unwrap_or_else(|error| (NO_RESULT, error.message));
    ProbeResult { start, end: now(), exit_code, output }
}

/// Runs a command as an exec, and returns its exit code and what it has written.
async fn execute(
    engine: &Engine,
    container: &Container,
    run: &node::Container,
    command: &[String],
    timeout: Duration,
) -> Result<(i32, String)> {
    let exec = id::random_hex(32);
    engine.publish_command(container, "exec_create", &exec, command);
    engine.publish_command(container, "exec_start", &exec, command);
    let request =
        ExecRequest { args: command.to_vec(), tty: false, overrides: Overrides::default() };
    let null = OwnedFd::from(File::open("/dev/null").context("open /dev/null")?);
    // One pipe for both, so that lines stay in order.
    let (reader, writer) = stdio::output().context("pipe")?;
    let mut execution = run.start_exec(&request, &[&null, &writer, &writer]).await?;
    drop(writer);
    let (over, ended) = watch::channel(false);
    let mut output = Output::default();
    let code = {
        let waiting = async {
            let code = end(&mut execution, timeout).await;
            over.send_replace(true);
            code
        };
        let (code, ()) = tokio::join!(waiting, collect(&reader, ended, &mut output));
        code?
    };
    let attributes = json!({ "execID": exec, "exitCode": code.unwrap_or(KILLED).to_string() });
    engine.publish(container, "exec_die", attributes);
    Ok(match code {
        Some(code) => (code, output.text()),
        None => (NO_RESULT, output.timed_out(timeout)),
    })
}

/// Waits for the end of a probe. `None` if it took too long and was killed.
async fn end(execution: &mut Execution, timeout: Duration) -> Result<Option<i32>> {
    match tokio::time::timeout(timeout, execution.ended()).await {
        Ok(code) => code.map(Some),
        Err(_) => {
            execution.kill().await;
            Ok(None)
        }
    }
}

/// Reads all that a probe writes, so that it does not block, and keeps the beginning.
async fn collect(reader: &pipe::Receiver, ended: watch::Receiver<bool>, output: &mut Output) {
    let mut drain = Drain::new(reader, ended);
    let mut buffer = [0; CHUNK];
    while let Ok(length @ 1..) = drain.read(&mut buffer).await {
        output.push(&buffer[..length]);
    }
}

/// Takes the result of a probe. A change of the status is on disk before anybody hears of it.
fn take(engine: &Engine, container: &Container, probe: &Probe, result: ProbeResult) {
    let last = container.state().last;
    let before = last.health.unwrap_or_else(|| Health::started(None));
    let (health, changed) = before.next(probe, result, last.started_at);
    let Some(status) = changed else {
        container.enter(|state| state.last.health = Some(health));
        return;
    };
    if let Err(error) = container.change_last(|last| last.health = Some(health)) {
        tracing::warn!(container = container.id, "its health cannot be recorded: {error:#}");
    }
    let action = format!("health_status: {}", status.as_str());
    engine.publish(container, &action, json!({}));
}
