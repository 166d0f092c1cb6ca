//! The command line: its arguments, and the commands besides the daemon itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use berth_base::{
    config::{self, Config},
    layout::Layout,
};
use clap::{Parser, Subcommand};

use crate::{build, client, daemon, debug, log::LogFormat, memory};

const CONFIG: &str = "/etc/berth/config.toml";

/// At the end of `--help`.
const EXAMPLES: &str = "\
Examples:
  Run the daemon with data in /var/lib/berth and its socket at /run/berth/berth.sock:
    berthd

  Keep the data elsewhere, and log more:
    berthd --root /data/berth --log-level debug

  Use it with crictl, or with the kubelet by --container-runtime-endpoint:
    crictl --runtime-endpoint unix:///run/berth/berth.sock pods

  See whether this machine has what pods need:
    sudo berthd check

  Write a configuration file to change, and check it:
    berthd config default > /etc/berth/config.toml
    berthd config check

  Add an image without a registry, from Docker or from another node:
    docker save web:1 | berthd images import -
    ssh node2 berthd images export web:1 | berthd images import -

  Verify all images, and pull again what is damaged:
    berthd images check --repair

  See what is on disk, for a bug report:
    berthd debug state";

/// A container runtime for Kubernetes nodes. It runs pods and containers for the kubelet, over the
/// Container Runtime Interface (CRI v1).
///
/// Without a command, berthd is that daemon. It must run as root, and serves until it gets SIGTERM;
/// containers keep running when it ends, and the next berthd takes them over.
#[derive(Debug, Parser)]
#[command(
    version = build::VERSION,
    // clap would join the lines of the description to one.
    verbatim_doc_comment,
    after_help = EXAMPLES
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Verb>,
    /// Configuration file [default: /etc/berth/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of images, containers and records [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of what a reboot ends: sockets and namespaces [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Unix socket for the kubelet, crictl and `berthd images` [default: /run/berth/berth.sock]
    #[arg(long, global = true, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// error, warn, info, debug or trace; or one for each crate, such as berth_image=debug,warn
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// Format of the log, which goes to standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Look whether this machine has what berthd needs, and say what to do about what it lacks.
    ///
    /// It needs no running daemon, and changes nothing. Fails if something is missing without which
    /// no pod runs.
    Check {
        /// Print one JSON document in place of the table
        #[arg(long)]
        json: bool,
    },
    /// Print the default configuration file, or check one
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Import, export or verify the images of the running daemon
    #[command(subcommand)]
    Images(ImagesVerb),
    /// Show what berthd finds on disk, for bug reports
    #[command(subcommand)]
    Debug(DebugVerb),
}

#[derive(Clone, Debug, Subcommand)]
enum ImagesVerb {
    /// Add the images of a tar archive: an OCI image layout, or what `docker save` writes.
    ///
    /// The archive may be compressed with gzip or zstd.
    Import {
        /// The archive, or - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Name for an image that has none in the archive
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Write images into one archive that berth, docker, podman and containerd can import
    Export {
        /// Tags, digests or ids of images
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// File to write [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Compare every file of every image with what was pulled.
    ///
    /// Prints a line for each image, and fails if one of them is damaged.
    Check {
        /// Pull damaged images again
        #[arg(long)]
        repair: bool,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum DebugVerb {
    /// Print the records of all pods and containers, and the state that follows from them.
    ///
    /// It reads the disk, needs no running daemon, and changes nothing.
    State,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum ConfigVerb {
    /// Print a configuration file with every key at its default
    Default,
    /// Read the configuration file, and report each mistake with its line
    Check,
}

/// Runs the program, and prints the error that ends it.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Some(Verb::Check { json }) => return check(&arguments, *json),
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
        None => run_daemon(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("berthd: {error:#}");
    ExitCode::FAILURE
}

/// The exit code of `berthd check`, which has said all there is to say.
#[allow(clippy::print_stdout, reason = "what was asked for")]
fn check(arguments: &Arguments, json: bool) -> ExitCode {
    let looked = configuration(arguments).and_then(|config| {
        Ok(asynchronous()?.block_on(berth_check::check(&config, build::VERSION, build::time())))
    });
    match looked {
        Ok(report) => {
            print!("{}", if json { report.json() } else { report.table() });
            if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => failed(&error),
    }
}

/// For commands that wait for somebody else.
fn asynchronous() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("start the asynchronous runtime")
}

/// The configuration: the file's, with options of the command line in place of its keys.
fn configuration(arguments: &Arguments) -> anyhow::Result<Config> {
    let path = arguments.config.as_deref().unwrap_or(Path::new(CONFIG));
    // Only the default file may be absent. One that was named and does not exist is a mistake.
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
    // The daemon has the images open, so these commands are requests to it. The configuration tells
    // where its socket is.
    let socket = configuration(arguments)?.listen;
    let runtime = asynchronous()?;
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
            // Printed as they come: to read every file of all images may take minutes.
            let damaged = runtime.block_on(client::check(&socket, *repair, |image| {
                let state = image.state().as_str_name().to_lowercase();
                println!("{state:<8}  {}  {}", image.id, image.names.join(" "));
                image.problems.iter().for_each(|problem| println!("          {problem}"));
            }))?;
            match (damaged, repair) {
                (0, _) => Ok(()),
                (_, true) => bail!("{damaged} damaged images are left"),
                (_, false) => bail!(
                    "{damaged} damaged images; `berthd images check --repair` pulls them again"
                ),
            }
        }
    }
}

fn run_daemon(arguments: &Arguments) -> anyhow::Result<()> {
    // It may execute this program once more, so it comes before everything else.
    memory::give_back();
    let config = configuration(arguments)?;
    daemon::run(&config, &arguments.log_level, arguments.log_format)
}
