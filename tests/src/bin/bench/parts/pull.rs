//! Pulls of a large image and of one with many layers, and what they do to the daemon's memory.

use std::{
    fs,
    io::{Write, copy, sink},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use berth_tests::Machine;

use super::{
    Findings,
    image::{Tree, many, tree},
};
use crate::{
    options::Options,
    report::{Key, Part, Unit},
    rig::{Rig, Target},
    usage,
};

pub(crate) async fn measure(rig: &Rig, options: &Options, findings: &mut Findings) -> Result<()> {
    let Rig { registry, machine, .. } = rig;
    let tree = tree()?;
    let large = registry.push(machine, "tree", "1", &tree.image);
    // Each pull has an image of its own: where that many files were just deleted, ext4 spends
    // long on finding an inode that was not (`recently_deleted()` in fs/ext4/ialloc.c).
    let small: Vec<String> = (0..options.pulls)
        .map(|pull| registry.push(machine, "many", &pull.to_string(), &many(pull)))
        .collect();
    // The small images come first: the writeback that the large one leaves behind would slow down
    // whichever daemon comes next.
    let time = |name| Key::new(Part::Pull, name, Unit::Milliseconds);
    for image in &small {
        for target in &rig.targets {
            let begun = Instant::now();
            target.cri.pull(image).await?;
            let pulled = begun.elapsed();
            findings.samples.add_time(&time("PullImage, 40 layers"), target.name, pulled);
        }
    }
    for _ in 0..options.pulls {
        for target in &rig.targets {
            let pulled = pull_large(target, &large, findings).await?;
            findings.samples.add_time(&time("PullImage, large"), target.name, pulled);
            let begun = Instant::now();
            target.cri.remove_image(&large).await?;
            findings.samples.add_time(&time("RemoveImage"), target.name, begun.elapsed());
        }
    }
    for target in &rig.targets {
        if let Some(pid) = target.pid() {
            let key = Key::new(Part::Pull, "daemon's memory after the pulls", Unit::Kibibytes);
            findings.samples.add(&key, target.name, usage::memory(pid, "Rss:"));
        }
    }
    findings.notes.insert(Part::Pull, floor(machine, &tree)?);
    Ok(())
}

/// Pulls an image; returns how long it takes, and adds the memory that it takes at its peak.
async fn pull_large(target: &Target, image: &str, findings: &mut Findings) -> Result<Duration> {
    let before = target.pid().map(|pid| {
        usage::reset_peak(pid);
        (pid, usage::memory(pid, "Rss:"))
    });
    let begun = Instant::now();
    target.cri.pull(image).await?;
    let pulled = begun.elapsed();
    if let Some((pid, before)) = before {
        let key = Key::new(Part::Pull, "daemon's memory, more while it pulls", Unit::Kibibytes);
        findings.samples.add(&key, target.name, usage::peak(pid) - before);
    }
    Ok(pulled)
}

/// What the large image is, and the lower bound of its pull: its parts, each on its own.
fn floor(machine: &Machine, tree: &Tree) -> Result<String> {
    let mut inflate = Vec::new();
    for blob in &tree.image.blobs[..tree.tars.len()] {
        let begun = Instant::now();
        copy(&mut flate2::bufread::MultiGzDecoder::new(blob.as_slice()), &mut sink())?;
        inflate.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let directory = machine.path("tar");
    fs::create_dir_all(&directory)?;
    let begun = Instant::now();
    for tar in &tree.tars {
        let mut child =
            Command::new("tar").arg("-xC").arg(&directory).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().context("piped")?.write_all(tar)?;
        child.wait()?;
    }
    let unpack = begun.elapsed().as_millis();
    fs::remove_dir_all(&directory)?;
    let bytes = |blobs: &[Vec<u8>]| blobs.iter().map(Vec::len).sum::<usize>() >> 20;
    Ok(format!(
        "the large image is {} MiB of this machine's /usr in {} layers, {} MiB as gzip; its parts, \
         each alone: inflate {:.0} ms, of the largest layer {:.0} ms, tar -x {unpack} ms",
        bytes(&tree.tars),
        tree.tars.len(),
        bytes(&tree.image.blobs),
        inflate.iter().sum::<f64>(),
        inflate.iter().copied().fold(0.0, f64::max),
    ))
}
