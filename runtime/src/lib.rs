//! berthd: reads its configuration, recovers what is on disk, serves CRI. There is nothing to save on the way out.

mod apparmor;
mod cdi;
mod cgroup;
mod client;
mod clock;
mod config;
mod container;
mod debug;
mod error;
mod events;
mod exporter;
mod handlers;
mod id;
mod image;
mod index;
mod layout;
mod machine;
mod network;
mod node;
mod recover;
mod sandbox;
mod selinux;
mod server;
mod shim;
mod stats;
mod streaming;
mod telemetry;
mod trash;

#[cfg(fuzzing)]
pub use {image::fuzz, streaming::fuzz_spdy};

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{config::Config, layout::Layout, machine::Machine, telemetry::Traces};

const CONFIG: &str = "/etc/berth/config.toml";

/// A Kubernetes node runtime: pods and containers over CRI v1.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  berthd                                        the defaults: /run/berth/berth.sock, data in /var/lib/berth
  berthd --root /data/berth --log-level debug   other data directory, more to read
  berthd config default > /etc/berth/config.toml
  berthd config check                           says what is wrong with /etc/berth/config.toml, with its line
  docker save web:1 | berthd images import -    adds an image without a registry
  berthd images export web:1 | ssh node2 berthd images import -
  berthd debug state                            what is on disk, and what berthd makes of it
  berthd images check --repair                  verifies all images, pulls again what is damaged
  crictl --runtime-endpoint unix:///run/berth/berth.sock pods"
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Verb>,
    /// Configuration file; the default one may be absent
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where images and containers are kept [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where sockets and pinned namespaces are [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Unix socket to serve CRI on [default: /run/berth/berth.sock]
    #[arg(long, global = true, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// error, warn, info, debug or trace; or directives, as in berthd=debug,warn
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// Log lines for people or for machines, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The configuration file: print the default, or check one
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Images of a daemon that runs
    #[command(subcommand)]
    Images(ImagesVerb),
    /// For bug reports
    #[command(subcommand)]
    Debug(DebugVerb),
}

#[derive(Clone, Debug, Subcommand)]
enum ImagesVerb {
    /// Add the images of an archive: an OCI image layout or what `docker save` writes, as a tar, plain, gzip or zstd
    Import {
        /// The archive; - is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What to call an image that the archive does not name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Write images into one archive that berth, docker, podman and containerd can import
    Export {
        /// Tags, digests or ids
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// The archive [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Compare every file of every image with what was pulled; fails if one is damaged
    Check {
        /// Pull again what is damaged
        #[arg(long)]
        repair: bool,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum DebugVerb {
    /// Print what is on disk of pods and containers, and what berthd makes of it; changes nothing
    State,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum ConfigVerb {
    /// Print a file with every key at its default
    Default,
    /// Read the file and say what is wrong with it
    Check,
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Some(Verb::Config(ConfigVerb::Default)) => {
            #[allow(clippy::print_stdout, reason = "what was asked for")]
            {
                print!("{}", config::DEFAULT);
            }
            Ok(())
        }
        Some(Verb::Config(ConfigVerb::Check)) => configuration(&arguments).map(drop),
        Some(Verb::Images(verb)) => images(&arguments, verb),
        Some(Verb::Debug(DebugVerb::State)) => debug_state(&arguments),
        None => run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The file, with what the command line says instead.
fn configuration(arguments: &Arguments) -> anyhow::Result<Config> {
    let path = arguments.config.as_deref().unwrap_or(Path::new(CONFIG));
    let mut config = Config::load(path, arguments.config.is_some()).map_err(anyhow::Error::msg)?;
    if let Some(root) = &arguments.root {
        config.root.clone_from(root);
    }
    if let Some(state) = &arguments.state {
        config.state.clone_from(state);
    }
    if let Some(listen) = &arguments.listen {
        config.listen.clone_from(listen);
    }
    Ok(config)
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn debug_state(arguments: &Arguments) -> anyhow::Result<()> {
    let config = configuration(arguments)?;
    print!("{}", debug::state(&Layout { root: config.root, state: config.state })?);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn images(arguments: &Arguments, verb: &ImagesVerb) -> anyhow::Result<()> {
    let socket = configuration(arguments)?.listen;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    match verb {
        ImagesVerb::Import { file, name } => {
            for image in runtime.block_on(client::import(&socket, file, name.as_deref()))? {
                println!("{}  {}", image.id, image.names.join(" "));
            }
            Ok(())
        }
        ImagesVerb::Export { names, output } => {
            runtime.block_on(client::export(&socket, output.as_deref(), names.clone()))
        }
        ImagesVerb::Check { repair } => {
            let damaged = runtime.block_on(client::check(&socket, *repair, |image| {
                let state = image.state().as_str_name().to_lowercase();
                println!("{state:<8}  {}  {}", image.id, image.names.join(" "));
                image.problems.iter().for_each(|problem| println!("          {problem}"));
            }))?;
            match (damaged, repair) {
                (0, _) => Ok(()),
                (_, true) => bail!("{damaged} damaged images are left"),
                (_, false) => bail!("{damaged} damaged images; `berthd images check --repair` pulls them again"),
            }
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = configuration(arguments)?;
    // Traces are sent by tasks of it.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let entered = runtime.enter();
    let _traces = log(arguments)?;
    drop(entered);
    if !rustix::process::geteuid().is_root() {
        bail!("berthd makes namespaces, mounts and cgroups: run it as root");
    }
    let layout = Layout { root: config.root.clone(), state: config.state.clone() };
    // Held to the end of the process.
    let _lock = prepare(&layout)?;
    runtime.block_on(serve(&config))
}

/// Log lines to standard error, spans to wherever the environment says.
fn log(arguments: &Arguments) -> anyhow::Result<Option<Traces>> {
    let level = &arguments.log_level;
    // A level alone is about berth itself: a person who wants to see HTTP/2 frames says so.
    let directives = if level.contains(['=', ',']) { level.clone() } else { format!("warn,berthd={level}") };
    let filter = tracing_subscriber::EnvFilter::try_new(directives).context("--log-level")?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match arguments.log_format {
        LogFormat::Text => {
            lines.with_target(false).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed()
        }
        LogFormat::Json => lines.json().boxed(),
    };
    let traces = Traces::from_environment()?;
    let spans = traces.as_ref().map(|traces| {
        let only = Targets::new().with_target(telemetry::TARGET, tracing::Level::INFO);
        tracing_opentelemetry::layer().with_tracer(traces.tracer()).with_filter(only)
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(traces)
}

/// Makes the directories, and takes the one lock: two daemons on one root would each undo what the other does.
fn prepare(layout: &Layout) -> anyhow::Result<OwnedFd> {
    // Hooks of a container in a user namespace reach its bundle, below the state directory, as somebody else.
    let directories = [
        (layout.root.clone(), 0o700),
        (layout.state.clone(), 0o711),
        (layout.pins(), 0o700),
        (layout.ipam(), 0o700),
        (layout.oci(), 0o700),
    ];
    for (directory, mode) in &directories {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(*mode))
            .with_context(|| format!("chmod {}", directory.display()))?;
    }
    let path = layout.lock();
    // Not kept open for writing: a disk that is to become read-only can.
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let lock =
        rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).with_context(|| format!("open {}", path.display()))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another berthd uses {}: stop it, or choose another --root", layout.root.display());
    }
    check_version(layout)?;
    trash::empty(layout).context("empty the trash")?;
    Ok(lock)
}

/// Refuses a root that a newer berthd has written in a way of its own.
fn check_version(layout: &Layout) -> anyhow::Result<()> {
    let path = layout.version();
    let found = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        found => found.with_context(|| format!("read {}", path.display()))?,
    };
    match found.trim() {
        layout::VERSION => Ok(()),
        // New, or a power loss took what was in it.
        "" => fs::write(&path, layout::VERSION).with_context(|| format!("write {}", path.display())),
        found => bail!(
            "{} is of layout {found:?}, and this berthd knows {:?}: use the berthd that wrote it, or another --root",
            layout.root.display(),
            layout::VERSION
        ),
    }
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let machine = Arc::new(Machine::new(config).await?);
    let streaming = streaming::Streaming::start(machine.clone(), &config.streaming).await?;
    let node = recover::recover(machine).await?;
    node.machine.images.import_all(&config.images_dir).await;
    if let Some(address) = config.metrics.listen {
        exporter::start(address, node.clone(), streaming.clone()).await?;
    }
    let listener = server::listen(&config.listen)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %config.listen.display(), root = %config.root.display(), "serving CRI v1");
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        result = server::serve(node, streaming, listener) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
