//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::report::Part;

const EXAMPLES: &str = "\
Absolute times say little on a shared machine; the ratio is of one run, in which the runtimes take
turns. Examples:

  hack/bench                                        all parts, with a table in the end
  hack/bench --alone --only latency --rounds 200    berth alone, as after a change
  hack/bench --only density,restart --pods 1,50     how it goes on with fifty pods
  hack/bench --only pull --json pull.json           one part now, and with the others put together:
  hack/bench --from pull.json --from rest.json --plots /tmp/plots --markdown
  hack/bench --only docker                          docker's verbs against dockerd
  hack/bench --publish                              README.md and hack/bench-plots, measured anew

Whatever ends a run (Ctrl-C, SIGTERM, a timeout), no process, cgroup, mount or file of it is left.";

/// Drives berthd and containerd with runc (or any CRI endpoint) through the same verbs in turn, and
/// prints percentiles and ratios.
#[derive(Clone, Debug, Parser)]
#[command(name = "hack/bench", after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Parts to measure, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,...", default_values_t = Part::ALL)]
    pub(crate) only: Vec<Part>,
    /// Samples of each verb for each number at once; the first pod is to warm up, and not counted.
    #[arg(long, default_value_t = 50)]
    pub(crate) rounds: usize,
    /// How many clients are at work at once in latency and exec.
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_values_t = [1, 4, 16])]
    pub(crate) at_once: Vec<usize>,
    /// How many pods there are when density and restart are measured.
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_values_t = [1, 50, 200, 500])]
    pub(crate) pods: Vec<usize>,
    /// Pulls to measure, of each image.
    #[arg(long, default_value_t = 3)]
    pub(crate) pulls: usize,
    /// Seconds of probing, and of looking at stats.
    #[arg(long, default_value_t = 30)]
    pub(crate) seconds: u64,
    /// Compares with the runtime at this unix socket, which must reach 127.0.0.1:5000 of the
    /// bench's network namespace.
    #[arg(long, value_name = "SOCKET", conflicts_with = "alone")]
    pub(crate) peer: Option<PathBuf>,
    /// Measures berth without a peer.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Writes the results, to be read by programs and by `--from`.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Shows results of earlier runs and measures nothing. May be repeated: of a part that is in
    /// several files the last one counts.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Vec<PathBuf>,
    /// Draws the results as SVG files in this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
    /// Prints the README's tables in the place of the whole one.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Writes tables into README.md and plots into hack/bench-plots.
    #[arg(long)]
    pub(crate) publish: bool,
}

impl Options {
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.contains(&part)
    }
}
