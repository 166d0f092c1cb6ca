//! `berthd debug state`: what is on disk, and what the daemon makes of it, for bug reports.
//!
//! It reads the same records with the same functions as start-up does, and changes nothing.

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    fs,
    path::Path,
};

use anyhow::Context;
use berth_base::{
    id::{ContainerId, SandboxId},
    layout::{self, Layout},
};
use berth_node::{
    container::{self, Verdict},
    host,
    sandbox::{self, State},
    shim,
};
use berth_shim::{
    layout as shim_layout,
    record::{self, End, Found},
    spec::Spec,
};

use crate::root_lock;

/// Of what start-up removes: a crash came before it was whole.
const INCOMPLETE: &str = "incomplete: removed at the next start";

/// What there is to say of one container directory.
struct ContainerReport {
    /// The id of its pod; empty if no record names one.
    sandbox: String,
    /// A shim holds its lock, or the lock cannot be read.
    may_live: bool,
    /// Start-up lists it even if its pod is not there, because its processes may run.
    is_listed_alone: bool,
    summary: String,
    files: String,
}

/// Lines for people: the daemon, pods with their containers, and what belongs to no pod.
///
/// # Errors
/// The root cannot be read.
pub(crate) fn state(layout: &Layout) -> anyhow::Result<String> {
    let boot_id = host::boot_id()?;
    let mut text = String::new();
    header(&mut text, layout, &boot_id)?;
    let mut containers: Vec<ContainerReport> = names(&layout.containers())?
        .into_iter()
        .map(|name| container_report(layout, &name, &boot_id))
        .collect();
    let living: BTreeSet<String> = containers
        .iter()
        .filter(|container| container.may_live)
        .map(|container| container.sandbox.clone())
        .collect();
    let pods = names(&layout.sandboxes())?;
    for id in &pods {
        pod(&mut text, layout, id, &boot_id, living.contains(id))?;
        let (own, others) = containers.into_iter().partition(|container| container.sandbox == *id);
        containers = others;
        write_containers(&mut text, own)?;
    }
    // What is left belongs to a pod that is not there.
    let (listed, removed): (Vec<_>, Vec<_>) =
        containers.into_iter().partition(|container| container.is_listed_alone);
    if !listed.is_empty() {
        writeln!(text, "without a pod, but listed because their processes may be running")?;
        write_containers(&mut text, listed)?;
    }
    if !removed.is_empty() {
        writeln!(text, "without a pod: removed at the next start")?;
        write_containers(&mut text, removed)?;
    }
    for id in names(&layout.attachments())?.into_iter().filter(|id| !pods.contains(id)) {
        writeln!(text, "network {id}  its pod is gone, and its DEL has not succeeded yet")?;
    }
    let layers = names(&layout.layers()).map_or(0, |names| names.len());
    let trash = names(&layout.trash()).map_or(0, |names| names.len());
    writeln!(text, "\nlayers {layers}, trash {trash}")?;
    Ok(text)
}

fn header(text: &mut String, layout: &Layout, boot_id: &str) -> fmt::Result {
    let daemon = match fs::File::open(layout.lock()).map(root_lock::holder) {
        Ok(Ok(Some(holder))) => format!("runs ({holder})"),
        Ok(Ok(None)) => "does not run".to_owned(),
        Ok(Err(error)) => format!("may run: {error}"),
        Err(_) => "never ran here".to_owned(),
    };
    writeln!(text, "berthd {}: {daemon}", env!("CARGO_PKG_VERSION"))?;
    for (name, directory) in [("root ", &layout.root), ("state", &layout.state)] {
        let version = fs::read_to_string(Layout::version_of(directory)).unwrap_or_default();
        writeln!(text, "{name}  {}, layout {}", directory.display(), version.trim())?;
    }
    writeln!(text, "boot   {boot_id}\n")
}

/// `lives`: some container of the pod may run, and start-up lists the pod whatever its own records
/// say.
fn pod(text: &mut String, layout: &Layout, id: &str, boot_id: &str, lives: bool) -> fmt::Result {
    let directory = layout.sandboxes().join(id);
    let damaged = |what: String| format!("not ready: {what}; remove it with `crictl rmp -f {id}`");
    let (state, name) = match sandbox::read_state(layout, &SandboxId::from(id.to_owned()), boot_id)
    {
        Ok(Some((meta, State::Ready))) => ("ready".to_owned(), meta.config.unique_name()),
        Ok(Some((meta, State::NotReady))) => ("not ready".to_owned(), meta.config.unique_name()),
        Ok(None) if lives => (damaged("a record of it is damaged".to_owned()), String::new()),
        Ok(None) => (INCOMPLETE.to_owned(), String::new()),
        Err(error) => (damaged(format!("a record of it cannot be read: {error:#}")), String::new()),
    };
    let attached = if layout.attachment(id).exists() { "  attached" } else { "" };
    writeln!(text, "pod {id}  {state}  {name}\n    {}{attached}", files(&directory))
}

fn write_containers(text: &mut String, containers: Vec<ContainerReport>) -> fmt::Result {
    for ContainerReport { summary, files, .. } in containers {
        writeln!(text, "  container {summary}\n      {files}")?;
    }
    Ok(())
}

/// The cases are those of `Container::load`.
fn container_report(layout: &Layout, name: &str, boot_id: &str) -> ContainerReport {
    let directory = layout.containers().join(name);
    let lock = shim::is_alive(&directory);
    let mut report = ContainerReport {
        sandbox: String::new(),
        may_live: *lock.as_ref().unwrap_or(&true),
        is_listed_alone: false,
        summary: format!("{name}  {INCOMPLETE}"),
        files: files(&directory),
    };
    if name.ends_with(&format!(".{}", layout::INCOMPLETE)) {
        return report;
    }
    let damage = match record::read::<container::Meta>(&directory.join(layout::container::META)) {
        Ok(Found::Record(meta)) => {
            report.sandbox = meta.sandbox.to_string();
            report.summary = format!("{name}  {}", summary(layout, name, &meta, boot_id));
            return report;
        }
        Ok(Found::Absent) => return report,
        // A power loss leaves this of a container that was just made.
        Ok(Found::Damaged) if matches!(lock, Ok(false)) => return report,
        Ok(Found::Damaged) => "is damaged".to_owned(),
        Err(error) => format!("cannot be read: {error}"),
    };
    // The shim's own record names the pod too.
    let spec = record::read::<Spec>(&directory.join(shim_layout::SPEC)).ok();
    report.sandbox = spec.and_then(Found::record).map_or_else(String::new, |spec| spec.sandbox);
    report.is_listed_alone = true;
    let meta = layout::container::META;
    report.summary =
        format!("{name}  unknown: its {meta} {damage}; remove it with `crictl rm -f {name}`");
    report
}

fn summary(layout: &Layout, name: &str, meta: &container::Meta, boot_id: &str) -> String {
    let directory = layout.containers().join(name);
    let state_directory = layout.container_state(&ContainerId::from(name.to_owned()));
    let state = match container::read_state(&directory, &state_directory, boot_id) {
        Ok((verdict, _)) => verdict_text(&verdict),
        // The daemon asks again until the disk answers.
        Err(error) => format!("unknown: {error:#}"),
    };
    let config = &meta.config;
    format!("{state}  {} (attempt {})  {}", config.name, config.attempt, meta.image_name())
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Created => "created".to_owned(),
        Verdict::Launching => "being launched".to_owned(),
        Verdict::Running => "running".to_owned(),
        Verdict::Exited(exited) => {
            format!("exited with {}{}", exited.end.code(), if exited.oom { ", OOM" } else { "" })
        }
        Verdict::Lost(End::Reboot) => "ended with the last boot".to_owned(),
        Verdict::Lost(End::RecordLost) => "exited: the record that says how is damaged".to_owned(),
        Verdict::Lost(_) => "its shim was killed".to_owned(),
    }
}

/// The names of the files that decide about a state and are there, and whether a shim lives.
fn files(directory: &Path) -> String {
    let decisive = [
        layout::sandbox::META,
        layout::sandbox::READY,
        layout::sandbox::STOPPED,
        layout::sandbox::PAUSE,
        shim_layout::SPEC,
        shim_layout::STARTED,
        shim_layout::EXITED,
        layout::container::STOP,
    ];
    let mut found: Vec<&str> =
        decisive.into_iter().filter(|name| directory.join(name).exists()).collect();
    match shim::is_alive(directory) {
        Ok(true) => found.push("lock held"),
        Ok(false) => {}
        Err(_) => found.push("lock unreadable"),
    }
    found.join("  ")
}

/// Sorted names of what is in `directory`; none where there is no such directory.
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
