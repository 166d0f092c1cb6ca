//! `POST /containers/{name}/attach`: joins a client to the streams of a container's first process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, sync::watch};

use super::{super::query::Query, Call, logs};
use crate::{
    container::{
        life,
        object::{Container, Streams},
        state::{Phase, State},
    },
    engine::Engine,
    http::{
        body::{self, Answer},
        client::Client,
        error::{Failure, Result},
        upgrade::{self, Framing, Pending},
        version::Version,
        websocket,
    },
    streams::{
        detach::{self, DEFAULT_KEYS, Detach},
        logs::LogOptions,
        session::{self, End, Own, Rules},
    },
};

/// How long the connection outlives the output of a run that goes on without.
const SILENT: Duration = Duration::from_secs(1);

/// What a client asked for.
struct Asked {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    /// Whether it gets what was written before first.
    logs: bool,
    /// Whether it gets what is written from now on.
    stream: bool,
    keys: Vec<u8>,
}

impl Asked {
    fn parse(query: &Query) -> Result<Self> {
        let keys = match query.get("detachKeys") {
            "" => DEFAULT_KEYS.to_vec(),
            keys => detach::parse(keys)?,
        };
        Ok(Self {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr"),
            logs: query.flag("logs"),
            stream: query.flag("stream"),
            keys,
        })
    }
}

pub(in crate::routes) async fn attach(call: Call, name: &str) -> Result<Answer> {
    match begin(call, name).await {
        Ok(answer) => Ok(answer),
        Err(failure) => Ok(body::failed_raw(&failure)),
    }
}

async fn begin(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, version, query, request } = call;
    let asked = Asked::parse(&query)?;
    let container = engine.containers.find(name)?;
    check(&container, name)?;
    let (parts, incoming) = request.into_parts();
    let incoming = match upgrade::is_wanted(&parts) || upgrade::has_document(&parts) {
        true => {
            // dockerode sends a body, which is no input of the container.
            let _ = body::read(incoming).await;
            None
        }
        false => Some(incoming),
    };
    let framing = Framing::of(container.record().config.tty);
    let (answer, pending) = upgrade::take(parts, incoming, framing, version);
    let session = Session::join(&engine, container, asked).await?;
    tokio::spawn(session.serve(engine, pending, framing));
    Ok(answer)
}

/// `GET /containers/{name}/attach/ws`, for browsers.
pub(in crate::routes) async fn attach_websocket(call: Call, name: &str) -> Result<Answer> {
    let Call { engine, version, query, request } = call;
    let mut asked = Asked::parse(&query)?;
    if version < Version(42) {
        (asked.stdin, asked.stdout, asked.stderr) = (true, true, true);
    }
    let container = engine.containers.find(name)?;
    check(&container, name)?;
    let (answer, upgrade) = websocket::take(request.into_parts().0)?;
    let session = Session::join(&engine, container, asked).await?;
    tokio::spawn(session.serve(engine, Pending::WebSocket(upgrade, version), Framing::Raw));
    Ok(answer)
}

fn check(container: &Container, name: &str) -> Result<()> {
    let why = match container.state().status() {
        "paused" => "is paused, unpause the container before attach",
        "restarting" => "is restarting, wait until the container is running",
        _ => return Ok(()),
    };
    Err(Failure::conflict(format!("container {name} {why}")))
}

/// A client that is joined.
struct Session {
    container: Arc<Container>,
    asked: Asked,
    own: Own,
    left: Arc<AtomicBool>,
    /// How many runs had ended before.
    ended: u64,
}

impl Session {
    /// Joins before the client has its answer, so that it misses nothing from then on.
    async fn join(engine: &Engine, container: Arc<Container>, asked: Asked) -> Result<Self> {
        let config = &container.record().config;
        let left = Arc::new(AtomicBool::new(false));
        let mut own = Own::default();
        let ended = container.state().ended;
        if asked.stream {
            // A terminal has one output.
            let wanted =
                (asked.stdin && config.open_stdin, asked.stdout, asked.stderr && !config.tty);
            let (ours, theirs) = session::open(wanted)
                .map_err(|error| anyhow::Error::new(error).context("open the client's streams"))?;
            own = ours;
            let session::Theirs { stdin, stdout, stderr } = theirs;
            let streams = Streams { stdin, stdout, stderr, left: left.clone() };
            life::attach(engine, &container, streams).await?;
        }
        engine.publish(&container, "attach", json!({}));
        Ok(Self { container, asked, own, left, ended })
    }

    async fn serve(mut self, engine: Arc<Engine>, pending: Pending, framing: Framing) {
        if let Some(mut client) = pending.client().await {
            if self.asked.logs && self.replay(&mut client).await.is_err() {
                return;
            }
            if self.asked.stream && self.copy(&mut client, framing).await == End::Detached {
                engine.publish(&self.container, "detach", json!({}));
            }
            self.left.store(true, Ordering::Relaxed);
            client.close().await;
        }
        self.left.store(true, Ordering::Relaxed);
    }

    /// Sends what is in the log.
    async fn replay(&self, client: &mut Client) -> std::io::Result<()> {
        let options = LogOptions {
            stdout: self.asked.stdout,
            stderr: self.asked.stderr,
            tty: self.container.record().config.tty,
            ..LogOptions::default()
        };
        let mut log = logs::open(&self.container, options, None).await?;
        while let Some((bytes, rest)) = log.next().await? {
            client.output.write_all(&bytes).await?;
            log = rest;
        }
        client.output.flush().await
    }

    async fn copy(&mut self, client: &mut Client, framing: Framing) -> End {
        let config = self.container.record().config.clone();
        let rules = Rules {
            framing,
            detach: (config.tty && self.own.stdin.is_some())
                .then(|| Detach::new(self.asked.keys.clone())),
            outlives_input: config.stdin_once && !config.tty,
        };
        let has_output = self.own.stdout.is_some() || self.own.stderr.is_some();
        // The output ends when the shim closes it, whoever has it.
        let (_open, never) = watch::channel(false);
        let mut state = self.container.watch();
        let ended = self.ended;
        let is_over = |state: &State| state.ended > ended || state.phase == Phase::Restarting;
        let copying = session::copy(&mut self.own, rules, client, never);
        if has_output {
            let end = copying.await;
            if end == End::Output {
                // When its connection ends, the client asks for the state, or removes the container.
                let _ = tokio::time::timeout(SILENT, state.wait_for(is_over)).await;
            }
            return end;
        }
        // Without output only the container's state tells of its end.
        tokio::select! {
            end = copying => end,
            _ = state.wait_for(|state| state.ended > ended) => End::Output,
        }
    }
}
