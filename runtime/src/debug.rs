//! `berthd debug state`: what is on disk, and what the state functions make of it. For bug reports: it changes nothing, and needs no
//! daemon that answers.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;
use berth_shim::{
    layout as shim_layout,
    record::{self, End, Found},
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    container::{self, Verdict},
    layout::{self, HALF_MADE, Layout},
    machine,
    sandbox::{self, State},
};

/// Lines for people: the daemon, pods with their containers, and what belongs to no pod.
///
/// # Errors
/// The root cannot be read.
pub(crate) fn state(layout: &Layout) -> anyhow::Result<String> {
    let boot_id = machine::boot_id()?;
    let mut text = String::new();
    let daemon = match fs::File::open(layout.lock()) {
        Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockShared).is_err() => "runs",
        Ok(_) => "does not run",
        Err(_) => "never ran here",
    };
    let version = fs::read_to_string(layout.version()).unwrap_or_default();
    let (root, state) = (layout.root.display(), layout.state.display());
    writeln!(text, "berthd {}: {daemon}", env!("CARGO_PKG_VERSION"))?;
    writeln!(text, "root   {root}, layout {}\nstate  {state}\nboot   {boot_id}\n", version.trim())?;
    let mut containers: Vec<(String, String, String)> =
        names(&layout.containers())?.into_iter().map(|name| container(layout, name, &boot_id)).collect();
    for id in names(&layout.sandboxes())? {
        let directory = layout.sandboxes().join(&id);
        let (state, name) = match sandbox::look(&directory, &boot_id) {
            Ok(Some((meta, State::Ready))) => ("ready".to_owned(), meta.config.unique_name()),
            Ok(Some((meta, State::NotReady))) => ("not ready".to_owned(), meta.config.unique_name()),
            Ok(None) => ("half-made: removed at the next start".to_owned(), String::new()),
            Err(error) => (format!("left alone: {error:#}"), String::new()),
        };
        let attached = if layout.attachment(&id).exists() { "  attached" } else { "" };
        writeln!(text, "pod {id}  {state}  {name}\n    {}{attached}", files(&directory))?;
        let (own, others) = containers.into_iter().partition(|(sandbox, ..)| *sandbox == id);
        containers = others;
        lines(&mut text, own)?;
    }
    if !containers.is_empty() {
        writeln!(text, "without a pod: removed at the next start")?;
        lines(&mut text, containers)?;
    }
    let pods = names(&layout.sandboxes())?;
    for id in names(&layout.attachments())?.into_iter().filter(|id| !pods.contains(id)) {
        writeln!(text, "network {id}  DEL is owed")?;
    }
    let count = |directory: &Path| names(directory).map_or(0, |names| names.len());
    writeln!(text, "\nlayers {}, trash {}", count(&layout.layers()), count(&layout.trash()))?;
    Ok(text)
}

fn lines(text: &mut String, containers: Vec<(String, String, String)>) -> std::fmt::Result {
    containers.into_iter().try_for_each(|(_, first, second)| writeln!(text, "  {first}\n      {second}"))
}

/// Its sandbox, and two lines.
fn container(layout: &Layout, name: String, boot_id: &str) -> (String, String, String) {
    let directory = layout.containers().join(&name);
    let files = files(&directory);
    if name.ends_with(&format!(".{HALF_MADE}")) {
        return (String::new(), format!("container {name}  half-made: removed at the next start"), files);
    }
    let meta = record::read::<container::Meta>(&directory.join(layout::container::META));
    let Ok(Found::Record(meta)) = meta else {
        return (String::new(), format!("container {name}  its record is damaged or absent"), files);
    };
    let state = match container::look(&directory, boot_id) {
        Ok((verdict, _)) => said(&verdict),
        Err(error) => format!("left alone: {error:#}"),
    };
    let config = &meta.config;
    (
        meta.sandbox.to_string(),
        format!("container {name}  {state}  {} (attempt {})  {}", config.name, config.attempt, config.image),
        files,
    )
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Created => "created".to_owned(),
        Verdict::Launching => "being launched".to_owned(),
        Verdict::Running => "running".to_owned(),
        Verdict::Exited(exited) => {
            format!("exited with {}{}", exited.end.code(), if exited.oom { ", OOM" } else { "" })
        }
        Verdict::Lost(End::Reboot) => "lost with the last boot".to_owned(),
        Verdict::Lost(_) => "its shim was killed".to_owned(),
    }
}

/// What there is of the files that decide, and whether a shim lives.
fn files(directory: &Path) -> String {
    let all = [
        layout::sandbox::META,
        layout::sandbox::READY,
        layout::sandbox::STOPPED,
        layout::sandbox::PAUSE,
        shim_layout::SPEC,
        shim_layout::STARTED,
        shim_layout::EXITED,
        layout::container::STOP,
    ];
    let mut found: Vec<String> =
        all.into_iter().filter(|name| directory.join(name).exists()).map(str::to_owned).collect();
    if crate::shim::is_alive(directory).unwrap_or(false) {
        found.push("lock held".to_owned());
    }
    found.join("  ")
}

/// None where there is no directory.
fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", directory.display()))?,
    };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}
