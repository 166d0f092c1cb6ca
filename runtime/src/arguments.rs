//! The arguments of the command line. Also what manual page and shell completions are made from
//! (`tests/src/bin/package`), so that this file needs nothing but clap.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

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

  Take over what dockerd's daemon.json says of registries, and see what else berth has of it:
    berthd engine import-config --dry-run
    berthd engine import-config /etc/docker/daemon.json

  See what is on disk, for a bug report:
    berthd debug state";

/// A container runtime for Kubernetes nodes. It runs pods and containers for the kubelet, over the
/// Container Runtime Interface (CRI v1).
///
/// Without a command, berthd is that daemon. It must run as root, and serves until it gets SIGTERM;
/// containers keep running when it ends, and the next berthd takes them over.
#[derive(Debug, Parser)]
#[command(
    name = "berthd",
    version,
    // clap would join the lines of the description to one.
    verbatim_doc_comment,
    after_help = EXAMPLES
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub command: Option<Verb>,
    /// Configuration file [default: /etc/berth/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of images, containers and records [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Directory of what a reboot ends: sockets and namespaces [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Unix socket for the kubelet, crictl and `berthd images` [default: /run/berth/berth.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub listen: Option<PathBuf>,
    /// error, warn, info, debug or trace; or one for each crate, such as berth_image=debug,warn
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// Format of the log, which goes to standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
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
    /// Move from dockerd to berth's Docker Engine API
    #[command(subcommand)]
    Engine(EngineVerb),
    /// Show what berthd finds on disk, for bug reports
    #[command(subcommand)]
    Debug(DebugVerb),
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ImagesVerb {
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

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum EngineVerb {
    /// Read dockerd's daemon.json: write how its mirrors and insecure registries are reached below
    /// `registry.config_path`, and say for every other key what berth has in its place.
    ///
    /// berth's own configuration is not changed: the lines for it are printed.
    ImportConfig {
        #[arg(value_name = "FILE", default_value = "/etc/docker/daemon.json")]
        file: PathBuf,
        /// Say what would be written, and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Replace files of registries that are there and say something else
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum DebugVerb {
    /// Print the records of all pods and containers, and the state that follows from them.
    ///
    /// It reads the disk, needs no running daemon, and changes nothing.
    State,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print a configuration file with every key at its default
    Default,
    /// Read the configuration file, and report each mistake with its line
    Check,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people; with colours on a terminal
    Text,
    /// One JSON object a line, for log collectors
    Json,
}
