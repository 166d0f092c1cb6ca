//! What `hack/package` puts into packages besides the programs: manual pages and shell completions,
//! from the very definitions of berthd's command line; licences and a list of all crates in it.

#[allow(dead_code, reason = "only its description is used")]
#[path = "../../../../runtime/src/arguments.rs"]
mod arguments;
mod crates;
mod licences;
mod manual;
mod sbom;

use std::path::PathBuf;

use clap::{CommandFactory, Parser};

#[derive(Debug, Parser)]
enum Verb {
    /// Write manual pages: berthd(8), one for each command, and berth-config.toml(5).
    Manual {
        directory: PathBuf,
        /// What `berthd config default` prints
        #[arg(long)]
        config: PathBuf,
    },
    /// Write completions for bash, fish and zsh.
    Completions { directory: PathBuf },
    /// Write the licences of all crates in the programs.
    Licences { file: PathBuf },
    /// Write a list of all crates in the programs, as CycloneDX 1.5.
    Sbom {
        file: PathBuf,
        /// Seconds since the epoch
        #[arg(long)]
        time: i64,
    },
}

fn main() -> anyhow::Result<()> {
    let command = arguments::Arguments::command();
    match Verb::parse() {
        Verb::Manual { directory, config } => manual::write_pages(&directory, command, &config),
        Verb::Completions { directory } => manual::write_completions(&directory, command),
        Verb::Licences { file } => licences::write(&file, &crates::shipped()?),
        Verb::Sbom { file, time } => sbom::write(&file, &crates::shipped()?, time),
    }
}
