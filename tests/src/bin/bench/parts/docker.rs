//! docker's verbs by the real docker CLI, and by the API alone, against dockerd with containerd and
//! runc. Each daemon has a machine of its own, and they take turns.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Daemon, Dockerd, Engine, Layer, Machine, engine,
    oracle::{Side, archive},
    processes,
};
use serde_json::json;

use super::Findings;
use crate::{
    options::Options,
    report::{BERTH, Key, Part, Unit},
    usage,
};

/// How many containers a long list has.
const LISTED: usize = 500;
/// How much a container has written when its log is read, in MB.
const LOG: usize = 200;
/// Rounds of the verbs that take seconds.
const LONG_ROUNDS: usize = 3;
/// Ten steps.
const DOCKERFILE: &str = "FROM busybox\nENV a=b\nWORKDIR /work\nCOPY file .\nRUN cat file > copy\n\
                          RUN echo 1 > one\nCOPY file /other/\nRUN ls > list\nEXPOSE 80\n\
                          CMD [\"cat\", \"list\"]\n";

/// One of the two. Dropped in this order: daemons first.
struct Target {
    name: &'static str,
    engine: Engine,
    daemon: Process,
    side: Side,
}

enum Process {
    Berth(Daemon),
    Dockerd(Dockerd),
}

pub(crate) async fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let mut targets = vec![berth().await?];
    if !options.alone {
        targets.push(dockerd().await?);
    }
    for target in &targets {
        let version = target.engine.get("/version").await["Version"].clone();
        if target.name != BERTH {
            let version = version.as_str().unwrap_or_default().to_owned();
            findings.versions.insert(target.name.to_owned(), version);
        }
        target.prepare().await?;
    }
    for round in 0..=options.rounds {
        for target in &targets {
            // The first round is to warm up.
            target.verbs(round, (round > 0).then_some(&mut *findings)).await?;
        }
    }
    for round in 0..=LONG_ROUNDS {
        for target in &targets {
            target.images((round > 0).then_some(&mut *findings)).await?;
        }
    }
    for target in &targets {
        target.fill().await?;
    }
    for _ in 0..LONG_ROUNDS {
        for target in &targets {
            target.list_and_read(findings)?;
        }
    }
    for target in &targets {
        let key = Key::new(Part::Docker, "daemon's memory after that", Unit::Kibibytes);
        findings.samples.add(&key, target.name, target.memory());
    }
    let note = format!(
        "times of docker ... have the CLI's own in them; the list has {LISTED} containers, the log \
         {LOG} MB; dockerd's memory is with its containerd's"
    );
    findings.notes.insert(Part::Docker, note);
    Ok(())
}

async fn berth() -> Result<Target> {
    let mut machine = Machine::new();
    machine.config = engine::config();
    let images = machine.path("images");
    fs::create_dir_all(&images)?;
    fs::write(images.join("bench.tar"), archive())?;
    let daemon = machine.start().await;
    let engine = Engine::of(&machine);
    let side = Side::new(machine, &engine.socket)?;
    side.serving().await?;
    Ok(Target { name: BERTH, engine, daemon: Process::Berth(daemon), side })
}

async fn dockerd() -> Result<Target> {
    ensure!(Path::new(&berth_tests::docker_tools()).exists(), "hack/tools/build docker");
    let machine = Machine::new();
    let dockerd = Dockerd::launch(&machine);
    let engine = Engine::of(&machine);
    let side = Side::new(machine, dockerd.socket())?;
    side.serving().await?;
    side.load(archive()).await?;
    Ok(Target { name: "dockerd", engine, daemon: Process::Dockerd(dockerd), side })
}

impl Target {
    fn machine(&self) -> &Machine {
        self.side.machine()
    }

    /// Runs the docker CLI, and tells how long it took.
    fn docker(&self, arguments: &[&str]) -> Result<Duration> {
        let mut command = self.machine().docker_command(arguments);
        let begun = Instant::now();
        let output = command.output().context("run docker")?;
        let time = begun.elapsed();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: docker {arguments:?}: {error}", self.name);
        Ok(time)
    }

    /// The containers of the verbs that need one.
    async fn prepare(&self) -> Result<()> {
        self.docker(&["run", "--detach", "--name", "stays", "busybox", "sleep", "100000"])?;
        self.docker(&["create", "--name", "again", "busybox", "true"])?;
        Ok(())
    }

    async fn verbs(&self, round: usize, findings: Option<&mut Findings>) -> Result<()> {
        let times = [
            ("docker run --rm true", self.docker(&["run", "--rm", "busybox", "true"])?),
            ("run --rm true, the API alone", self.run(round).await?),
            ("docker start", self.docker(&["start", "--attach", "again"])?),
            ("docker exec true", self.docker(&["exec", "stays", "true"])?),
        ];
        if let Some(findings) = findings {
            for (name, time) in times {
                let key = Key::new(Part::Docker, name, Unit::Milliseconds);
                findings.samples.add_time(&key, self.name, time);
            }
        }
        Ok(())
    }

    /// What `docker run --rm` asks of a daemon, from the creation to the removal.
    async fn run(&self, round: usize) -> Result<Duration> {
        let name = format!("api-{round}");
        let body =
            json!({ "Image": "busybox", "Cmd": ["true"], "HostConfig": { "AutoRemove": true } });
        let begun = Instant::now();
        self.engine.create(&name, body).await;
        let path = format!("/containers/{name}/wait?condition=removed");
        let waiting = self.engine.try_request("POST", &path, None);
        let starting = self.engine.start(&name);
        let (waited, ()) = tokio::join!(waiting, starting);
        let (status, answer) = waited?;
        ensure!(status == 200 && answer["StatusCode"] == 0, "{}: {answer}", self.name);
        Ok(begun.elapsed())
    }

    /// Images that are made: by a build, by the same one again, and of a container.
    async fn images(&self, findings: Option<&mut Findings>) -> Result<()> {
        let times = [
            ("build of ten steps, the API alone", self.build("/build?nocache=1").await?),
            ("the same from the cache", self.build("/build").await?),
            ("docker commit", self.docker(&["commit", "again", "committed"])?),
        ];
        if let Some(findings) = findings {
            for (name, time) in times {
                let key = Key::new(Part::Docker, name, Unit::Milliseconds);
                findings.samples.add_time(&key, self.name, time);
            }
        }
        Ok(())
    }

    async fn build(&self, path: &str) -> Result<Duration> {
        let context = Layer::new().file("Dockerfile", DOCKERFILE.as_bytes());
        let context = context.file("file", &[b'x'; 10_000]).bytes();
        let begun = Instant::now();
        let (_, answer) = self.engine.send(path, "application/x-tar", context).await;
        ensure!(answer.contains("Successfully built"), "{}: {answer}", self.name);
        Ok(begun.elapsed())
    }

    /// Containers for a long list, and a long log.
    async fn fill(&self) -> Result<()> {
        for number in 0..LISTED {
            let body = json!({ "Image": "busybox", "Cmd": ["true"] });
            self.engine.create(&format!("listed-{number}"), body).await;
        }
        let script =
            format!("yes 'one line of a log, as long as lines of logs are' | head -c {LOG}000000");
        self.docker(&[
            "run",
            "--name",
            "writes",
            "--log-driver",
            "json-file",
            "busybox",
            "sh",
            "-c",
            &script,
        ])?;
        Ok(())
    }

    fn list_and_read(&self, findings: &mut Findings) -> Result<()> {
        let key = Key::new(Part::Docker, "docker ps --all", Unit::Milliseconds);
        findings.samples.add_time(&key, self.name, self.docker(&["ps", "--all"])?);
        let key = Key::new(Part::Docker, "docker logs", Unit::MegabytesPerSecond);
        let time = self.docker(&["logs", "writes"])?.as_secs_f64();
        findings.samples.add(&key, self.name, LOG as f64 / time);
        Ok(())
    }

    /// Of the daemon, and of the one below it, in KiB.
    fn memory(&self) -> f64 {
        let pids = match &self.daemon {
            Process::Berth(daemon) => vec![daemon.pid() as u32],
            Process::Dockerd(dockerd) => {
                let marker = self.machine().dir.path().display().to_string();
                let shims = processes(&marker, "containerd-shim");
                let below = processes(&marker, "containerd").into_iter();
                below.filter(|pid| !shims.contains(pid)).chain([dockerd.pid()]).collect()
            }
        };
        pids.into_iter().map(|pid| usage::memory(pid, "Rss:")).sum()
    }
}
