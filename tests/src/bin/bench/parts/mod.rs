//! What is measured: each part on a rig of its own, so that none sees what another one left.

mod density;
mod docker;
mod exec;
mod image;
mod latency;
mod observing;
mod plugins;
mod probes;
mod pull;
mod streaming;

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result};

use crate::{
    about,
    options::Options,
    report::{Part, Report, Samples},
    rig::Rig,
};

/// What the parts have found out so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    samples: Samples,
    notes: BTreeMap<Part, String>,
    versions: BTreeMap<String, String>,
}

/// Runs those parts that are wanted. `say` is told what is going on.
pub(crate) async fn measure(options: &Options, say: impl Fn(&str)) -> Result<Report> {
    let mut findings = Findings::default();
    for part in Part::ALL.into_iter().filter(|part| options.wants(*part)) {
        // Restarts need as many pods as density, and come with it.
        if part == Part::Restart && options.wants(Part::Density) {
            continue;
        }
        say(&format!("measuring {part:?}"));
        let begun = Instant::now();
        let one = Box::pin(run(part, options, &mut findings));
        one.await.with_context(|| format!("{part:?}"))?;
        say(&format!("{part:?} took {} s", begun.elapsed().as_secs()));
    }
    Ok(Report {
        date: about::date()?,
        machine: about::machine()?,
        versions: findings.versions,
        notes: findings.notes,
        rows: findings.samples.rows(),
    })
}

async fn run(part: Part, options: &Options, findings: &mut Findings) -> Result<()> {
    // Plugins run without any runtime.
    if part == Part::Plugins {
        return plugins::measure(options, findings);
    }
    // docker's peer is dockerd, in a machine of its own.
    if part == Part::Docker {
        return docker::measure(options, findings).await;
    }
    let mut rig = Rig::start(options).await?;
    findings.versions.extend(rig.versions().await?);
    match part {
        Part::Latency => latency::measure(&rig, options, findings).await,
        Part::Exec => exec::measure(&rig, options, findings).await,
        Part::Pull => pull::measure(&rig, options, findings).await,
        Part::Probes => probes::measure(&rig, options, findings).await,
        Part::Streaming => streaming::measure(&rig, findings).await,
        Part::Observing => observing::measure(&rig, options, findings).await,
        Part::Density | Part::Restart => density::measure(&mut rig, options, findings).await,
        Part::Plugins | Part::Docker => Ok(()),
    }
}
