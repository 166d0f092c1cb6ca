//! What `hack/oracle` runs after the build: dockerd and berth beside each other, the same requests
//! to both, and a list of what they answer differently.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result};
use berth_tests::{
    Daemon, DockerRegistry, Dockerd, Machine,
    oracle::{Answers, Difference, Known, Scenario, Side, archive, differences, read},
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Sends the same requests and docker command lines to dockerd and to berth, and lists what they
/// answer differently.
///
/// Scenarios are tests/oracle/*.http and *.sh. Differences with a reason stand in
/// tests/engine-known.txt; one that has none makes the exit code 1.
#[derive(Parser)]
#[command(after_help = "Examples:
  hack/oracle
  hack/oracle --only 'create*' --all
  hack/oracle --record target/dockerd.json       dockerd alone
  hack/oracle --recorded target/dockerd.json     berth alone, compared with that
  hack/oracle --serve                            both, for experiments, until Ctrl-C")]
struct Options {
    /// Only scenarios whose name begins with this
    #[arg(long, default_value = "")]
    only: String,
    /// Asks dockerd alone, and writes its answers to this file
    #[arg(long, value_name = "FILE", conflicts_with = "recorded")]
    record: Option<PathBuf>,
    /// Asks berth alone, and takes dockerd's answers from this file
    #[arg(long, value_name = "FILE")]
    recorded: Option<PathBuf>,
    /// Lists differences with a reason, too
    #[arg(long)]
    all: bool,
    /// Starts both, or dockerd alone with --record, and asks nothing
    #[arg(long)]
    serve: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // The servers end with what is in this function when a signal comes.
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return ExitCode::from(2);
    };
    let result = tokio::select! {
        result = Box::pin(run(&options)) => result,
        _ = terminate.recv() => return ExitCode::from(2),
        _ = interrupt.recv() => return ExitCode::from(2),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("hack/oracle: {error:#}"));
            ExitCode::from(2)
        }
    }
}

#[allow(clippy::print_stdout, reason = "a program for people")]
fn say(text: &str) {
    println!("{text}");
}

async fn run(options: &Options) -> Result<bool> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scenarios = read(&tests.join("oracle"))?;
    scenarios.retain(|scenario| scenario.name.starts_with(options.only.trim_end_matches('*')));
    anyhow::ensure!(!scenarios.is_empty(), "no scenario begins with {}", options.only);
    let dockerd = match options.recorded {
        Some(_) => None,
        None => Some(dockerd().await?),
    };
    let berth = match options.record {
        Some(_) => None,
        None => Some(berth().await?),
    };
    if options.serve {
        let sides = [
            ("dockerd", dockerd.as_ref().map(|dockerd| dockerd.side.socket())),
            ("berth", berth.as_ref().map(|berth| berth.side.socket())),
        ];
        for (name, socket) in sides {
            if let Some(socket) = socket {
                say(&format!("{name:<8} DOCKER_HOST=unix://{}", socket.display()));
            }
        }
        std::future::pending::<()>().await;
    }
    let (theirs, ours) = tokio::join!(
        ask_all(dockerd.as_ref().map(|dockerd| &dockerd.side), &scenarios),
        ask_all(berth.as_ref().map(|berth| &berth.side), &scenarios),
    );
    if let Some(path) = &options.record {
        fs::write(path, serde_json::to_string_pretty(&theirs)?)?;
        say(&format!("{} answers are in {}", theirs.len(), path.display()));
        return Ok(true);
    }
    let theirs = match &options.recorded {
        Some(path) => recorded(path, &scenarios)?,
        None => theirs,
    };
    let known = Known::read(&tests.join("engine-known.txt"))?;
    Ok(report(&differences(&theirs, &ours), known, ours.len(), options))
}

/// dockerd's answers to the same scenarios, from a file.
fn recorded(path: &Path, scenarios: &[Scenario]) -> Result<Answers> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut answers: Answers = serde_json::from_str(&text)?;
    let asked =
        |place: &str| scenarios.iter().any(|it| place.starts_with(&format!("{}: ", it.name)));
    answers.retain(|(place, _)| asked(place));
    Ok(answers)
}

async fn ask_all(side: Option<&Side>, scenarios: &[Scenario]) -> Answers {
    let mut answers = Answers::new();
    let Some(side) = side else { return answers };
    for scenario in scenarios {
        answers.extend(side.run(scenario).await);
    }
    answers
}

/// Prints the differences and a summary; returns whether all have a reason.
fn report(found: &[Difference], mut known: Known, asked: usize, options: &Options) -> bool {
    let mut without_reason = 0;
    for difference in found {
        let has_reason = known.has(difference);
        without_reason += usize::from(!has_reason);
        if !has_reason || options.all {
            let mark = if has_reason { "known: " } else { "" };
            say(&format!("{mark}{difference}"));
        }
    }
    if options.only.is_empty() {
        for pattern in known.unused() {
            say(&format!("no longer a difference: {pattern}"));
        }
    }
    say(&format!(
        "{asked} requests and commands: {without_reason} differences without a reason, {} with one",
        found.len() - without_reason
    ));
    without_reason == 0
}

/// A daemon that runs, and what belongs to it.
struct Running<D> {
    side: Side,
    _daemon: D,
    _registries: [DockerRegistry; 2],
}

/// The registries of a side have the same addresses as those of the other one. The second wants a
/// password.
async fn registries(machine: &Machine) -> [DockerRegistry; 2] {
    [DockerRegistry::start(machine).await, DockerRegistry::start_with_password(machine).await]
}

async fn dockerd() -> Result<Running<Dockerd>> {
    let begun = Instant::now();
    let machine = Machine::new();
    let registries = registries(&machine).await;
    let dockerd = Dockerd::launch(&machine);
    let log = machine.path("dockerd.log");
    let side = Side::new(machine, dockerd.socket())?;
    side.serving().await.with_context(|| fs::read_to_string(log).unwrap_or_default())?;
    side.load(archive()).await?;
    say(&format!("dockerd serves after {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(Running { side, _daemon: dockerd, _registries: registries })
}

async fn berth() -> Result<Running<Daemon>> {
    let begun = Instant::now();
    let mut machine = Machine::new();
    let registries = registries(&machine).await;
    let socket = machine.path("docker.sock");
    machine.config = format!("[engine]\nlisten = {socket:?}\n");
    let images = machine.path("images");
    fs::create_dir_all(&images)?;
    fs::write(images.join("oracle.tar"), archive())?;
    let daemon = machine.start().await;
    let side = Side::new(machine, &socket)?;
    side.serving().await.with_context(|| daemon.log())?;
    say(&format!("berth serves after {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(Running { side, _daemon: daemon, _registries: registries })
}
