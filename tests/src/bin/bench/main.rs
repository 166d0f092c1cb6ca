//! What `hack/bench` runs after the build: it drives berthd and containerd on one machine through
//! CRI, in turns, and prints percentiles and their ratio.

mod about;
mod fleet;
mod guard;
mod markdown;
mod options;
mod parts;
mod plot;
mod report;
mod rig;
mod statistics;
mod table;
mod usage;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::{options::Options, report::Report};

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let [first, others @ ..] = &options.from[..] {
        let first = Report::read(first)?;
        let all = others.iter().try_fold(first, |all, path| all.merge(Report::read(path)?))?;
        show(&options, &all)?;
    } else if guard::is_inside() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(parts::measure(&options, progress))?;
        show(&options, &report)?;
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(guard::run());
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a report, and writes it to wherever it is wanted.
fn show(options: &Options, report: &Report) -> Result<()> {
    if options.markdown {
        say(&markdown::markdown(report));
    } else {
        say(&table::table(report));
    }
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    if let Some(directory) = &options.plots {
        plot::write(report, directory)?;
    }
    if options.publish {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        plot::write(report, &root.join("hack/bench-plots"))?;
        markdown::replace(&root.join("README.md"), &markdown::markdown(report))?;
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "a program for people")]
fn say(text: &str) {
    println!("{text}");
}

#[allow(clippy::print_stderr, reason = "a program for people")]
fn progress(text: &str) {
    eprintln!("hack/bench: {text}");
}
