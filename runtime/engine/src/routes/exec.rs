//! `/exec`: commands in running containers.

use std::{fs::File, io, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use anyhow::Context;
use berth_base::{blocking::blocking, error::Error};
use berth_node::container::{
    Execution,
    stdio::{Terminal, Window},
};
use berth_shim::{
    exec_request::{ExecRequest, Overrides},
    spec::{Capabilities, Identity, User},
};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    Call,
    execs::{Exec, Progress, check_active},
};
use crate::{
    api::{
        exec::{ExecBody, ExecStart},
        without_nulls,
    },
    container::{life, not_started::NotStarted, users},
    engine::Engine,
    http::{
        body::{self, Answer},
        client::Client,
        error::{Failure, Result},
        upgrade::{self, Framing, Pending},
        version::Version,
    },
    streams::{
        detach::{self, Detach},
        frames::Stream,
        session::{self, End, Own, Rules},
    },
};

/// What a privileged exec may do. The filter and the namespaces stay the container's.
const ALL_CAPABILITIES: Capabilities =
    Capabilities { granted: berth_node::container::ALL_CAPABILITIES, ambient: 0 };
/// The exit code of an exec whose container ended first: all in it are killed.
const KILLED: i32 = 137;
/// That of an exec that could not be started for another reason than its program.
const NOT_STARTED: i32 = 126;

pub(super) async fn create(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, version, request, .. } = call;
    let value: Value = body::parse(request.into_body()).await?;
    let mut body: ExecBody = serde_json::from_value(without_nulls(value, &[]))
        .map_err(|error| Failure::bad_request(format!("invalid JSON: {error}")))?;
    let command = body.cmd.take().unwrap_or_default();
    if command.is_empty() {
        return Err(Failure::bad_request("No exec command specified"));
    }
    if version < Version(42) {
        body.console_size = None;
    }
    let container = engine.containers.find(name)?;
    check_active(&container, name)?;
    if let Some(pid) = life::running(&engine, &container).and_then(|run| run.pid()) {
        blocking(|| users::check(pid, &body.user))?;
    }
    let detach_keys = match body.detach_keys.as_str() {
        "" => Vec::new(),
        keys => detach::parse_of_exec(keys)?,
    };
    let exec = engine.execs.add(container, body, command, detach_keys);
    engine.publish_command(&exec.container, "exec_create", &exec.id, &exec.command);
    Ok(body::json(StatusCode::CREATED, &json!({ "Id": exec.id })))
}

pub(super) async fn start(call: Call, id: &str) -> Result<Answer> {
    let Call { engine, version, request, .. } = call;
    let (parts, incoming) = request.into_parts();
    let value: Value = body::parse(incoming).await?;
    let options: ExecStart = serde_json::from_value(without_nulls(value, &[]))
        .map_err(|error| Failure::bad_request(format!("invalid JSON: {error}")))?;
    let exec = engine.execs.find(id)?;
    check_active(&exec.container, &exec.container.id)?;
    let asked = options.console_size.filter(|_| options.tty && version >= Version(42));
    let size = asked.or(exec.body.console_size);
    if options.detach {
        let (own, execution) = begin(&engine, &exec, size, true).await?;
        tokio::spawn(attend(engine, exec, execution, own, None));
        return Ok(body::empty(StatusCode::OK));
    }
    let framing = Framing::of(options.tty);
    let (answer, pending) = upgrade::take(parts, None, framing, version);
    tokio::spawn(serve(engine, exec, size, pending, framing));
    Ok(answer)
}

/// Starts an exec for a client that has its answer.
async fn serve(
    engine: Arc<Engine>,
    exec: Arc<Exec>,
    size: Option<[u32; 2]>,
    pending: Pending,
    framing: Framing,
) {
    let client = pending.client().await;
    match begin(&engine, &exec, size, false).await {
        Ok((own, execution)) => {
            let client = client.map(|client| (client, framing));
            attend(engine, exec, execution, own, client).await;
        }
        Err(failure) => {
            if let Some(client) = client {
                tell(client, framing, &failure).await;
            }
        }
    }
}

/// Sends a failure as output: the client reads it where it would read that.
async fn tell(mut client: Client, framing: Framing, failure: &Failure) {
    let text = format!("{}\r\n", failure.message);
    let sent = session::send(&mut client.output, framing, Stream::Stdout, text.as_bytes());
    if sent.await.is_ok() {
        client.close().await;
    }
}

/// Starts an exec.
async fn begin(
    engine: &Arc<Engine>,
    exec: &Arc<Exec>,
    size: Option<[u32; 2]>,
    is_detached: bool,
) -> Result<(Own, Execution)> {
    exec.begin()?;
    engine.publish_command(&exec.container, "exec_start", &exec.id, &exec.command);
    match launch(engine, exec, size, is_detached).await {
        Ok((own, window, execution)) => {
            exec.runs_as(execution.pid().unwrap_or_default(), window);
            Ok((own, execution))
        }
        Err(error) => {
            let Some(NotStarted { exit_code, why }) = NotStarted::of(&exec.command[0], &error)
            else {
                exec.end(NOT_STARTED);
                return Err(error.into());
            };
            exec.end(exit_code);
            Err(Failure::bad_request(format!(
                "OCI runtime exec failed: exec failed: unable to start container process: {why}"
            )))
        }
    }
}

async fn launch(
    engine: &Engine,
    exec: &Exec,
    size: Option<[u32; 2]>,
    is_detached: bool,
) -> Result<(Own, Option<Window>, Execution), Error> {
    let id = &exec.container.id;
    let not_running = || Error::precondition(format!("container {id} is not running"));
    let run = life::running(engine, &exec.container).ok_or_else(not_running)?;
    let pid = run.pid().ok_or_else(not_running)?;
    let (own, window, theirs) =
        open(&exec.body, pid, size, is_detached).await.context("open the command's streams")?;
    let descriptors: Vec<&OwnedFd> = theirs.iter().collect();
    let execution = run.start_exec(&request(exec), &descriptors).await?;
    Ok((own, window, execution))
}

/// The streams of the command: the daemon's ends, and the command's, which are one terminal or
/// three others.
async fn open(
    body: &ExecBody,
    pid: u32,
    size: Option<[u32; 2]>,
    is_detached: bool,
) -> io::Result<(Own, Option<Window>, Vec<OwnedFd>)> {
    if body.tty {
        let (own, window, theirs) = Own::of(Terminal::open(pid).await?);
        if let Some([height, width]) = size {
            window.resize(short(width), short(height));
        }
        return Ok((own, Some(window), vec![theirs]));
    }
    let attached = |wanted: bool| wanted && !is_detached;
    let (own, theirs) = session::open((
        attached(body.attach_stdin),
        attached(body.attach_stdout),
        attached(body.attach_stderr),
    ))?;
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let mut three = Vec::new();
    for stream in [theirs.stdin, theirs.stdout, theirs.stderr] {
        three.push(stream.map_or_else(null, Ok)?);
    }
    Ok((own, None, three))
}

/// A terminal has no more rows and columns than the kernel can count.
fn short(length: u32) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn request(exec: &Exec) -> ExecRequest {
    let ExecBody { user, tty, env, working_dir, privileged, .. } = &exec.body;
    let groups = exec.container.record().host_config.group_add.clone();
    ExecRequest {
        args: exec.command.clone(),
        tty: *tty,
        overrides: Overrides {
            user: (!user.is_empty()).then(|| parse_user(user, &groups.unwrap_or_default())),
            env: env.clone().unwrap_or_default(),
            cwd: (!working_dir.is_empty()).then(|| PathBuf::from(working_dir)),
            capabilities: privileged.then_some(ALL_CAPABILITIES),
        },
    }
}

/// `USER[:GROUP]`, each a name or a number.
fn parse_user(text: &str, groups: &[String]) -> User {
    let identity = |text: &str| match text.parse() {
        Ok(id) => Identity::Id(id),
        // A group alone is one of root.
        Err(_) if text.is_empty() => Identity::Id(0),
        Err(_) => Identity::Name(text.to_owned()),
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    User {
        user: identity(user),
        group: (!group.is_empty()).then(|| identity(group)),
        supplementary: groups.iter().filter_map(|id| id.parse().ok()).collect(),
        merge_groups: !users::has_group(text),
        group_names: groups.iter().filter(|id| id.parse::<u32>().is_err()).cloned().collect(),
    }
}

/// Waits for the end of an exec, and copies between it and its client meanwhile. The exec goes on
/// when the client has gone.
async fn attend(
    engine: Arc<Engine>,
    exec: Arc<Exec>,
    mut execution: Execution,
    mut own: Own,
    client: Option<(Client, Framing)>,
) {
    let (over, ended) = watch::channel(false);
    let waiting = async {
        let code = execution.ended().await.unwrap_or(KILLED);
        exec.end(code);
        let attributes = json!({ "execID": exec.id, "exitCode": code.to_string() });
        engine.publish(&exec.container, "exec_die", attributes);
        over.send_replace(true);
    };
    let serving = async {
        if let Some((mut client, framing)) = client {
            let rules = Rules {
                framing,
                detach: (exec.body.tty && exec.body.attach_stdin).then(|| Detach::new(exec.keys())),
                outlives_input: !exec.body.tty,
            };
            if !exec.body.attach_stdin {
                own.stdin = None;
            }
            match session::copy(&mut own, rules, &mut client, ended.clone()).await {
                End::Output => {
                    // The client asks for the exit code when its connection ends.
                    let _ = ended.clone().wait_for(|ended| *ended).await;
                }
                End::Detached => {
                    engine.publish(&exec.container, "exec_detach", json!({ "execID": exec.id }));
                }
                End::Left => {}
            }
            client.close().await;
        }
        own.discard(ended).await;
    };
    tokio::join!(waiting, serving);
}

pub(super) fn resize(call: &Call, id: &str) -> Result<Answer> {
    let exec = call.engine.execs.find(id)?;
    check_active(&exec.container, &exec.container.id)?;
    let (height, width) = super::containers::size(&call.query)?;
    match &*exec.progress() {
        Progress::Running { window: Some(window), .. } => {
            window.resize(short(width), short(height))
        }
        Progress::Running { .. } => {}
        Progress::Created | Progress::Ended { .. } => {
            return Err(Failure::bad_request("exec process is not started"));
        }
    }
    Ok(body::empty(StatusCode::OK))
}

pub(super) fn inspect(call: &Call, id: &str) -> Result<Answer> {
    let exec = call.engine.execs.find(id)?;
    let (running, exit_code, pid) = match *exec.progress() {
        Progress::Created => (false, None, 0),
        Progress::Running { pid, .. } => (true, None, pid),
        Progress::Ended { exit_code, pid, .. } => (false, Some(exit_code), pid),
    };
    let container = exec.container.record();
    let user = match exec.body.user.as_str() {
        "" => &container.config.user,
        user => user,
    };
    let mut process = json!({
        "tty": exec.body.tty,
        "entrypoint": exec.command[0],
        "arguments": exec.command[1..],
        "privileged": exec.body.privileged,
    });
    if !user.is_empty() {
        process["user"] = user.into();
    }
    use base64::Engine as _;
    Ok(body::ok(&json!({
        "ID": exec.id,
        "Running": running,
        "ExitCode": exit_code,
        "ProcessConfig": process,
        "OpenStdin": exec.body.attach_stdin,
        "OpenStderr": exec.body.attach_stderr,
        "OpenStdout": exec.body.attach_stdout,
        "CanRemove": false,
        "ContainerID": exec.container.id,
        "DetachKeys": base64::prelude::BASE64_STANDARD.encode(&exec.detach_keys),
        "Pid": pid,
    })))
}
