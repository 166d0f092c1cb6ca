//! Start-up: the containers of an earlier daemon, and what it left undone.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, layout::Layout, trash};
use berth_image::{Digest, Holder};
use berth_node::container::{self as node, MountSource, State};
use berth_shim::record::{self as disk, End, Exited, Found};

use super::{
    base_layer,
    life::{self, Seen},
    mounts::MountPoint,
    object::{Container, ImageLease},
    record::{Directory, Record},
    state::{Last, Phase},
};
use crate::{
    engine::Engine,
    network::{connect, names},
    restart::{Decision, Restarts},
    volumes,
};

/// Lists the containers that have a record, and finishes what was begun for them.
///
/// # Errors
/// Their directory cannot be read.
pub(crate) async fn recover(engine: &Arc<Engine>) -> anyhow::Result<()> {
    blocking(|| base_layer::make(&engine.node.host.layout.root))?;
    blocking(|| load(engine))?;
    for container in engine.containers.all() {
        take_up(engine, &container).await;
        if container.record().is_of_build
            && let Err(failure) = life::remove(
                engine,
                &container,
                &container.id,
                life::With { force: true, volumes: true },
            )
            .await
        {
            tracing::warn!(container = container.id, "left of a build: {}", failure.message);
        }
    }
    // A run without a record is what a removal has left.
    for sandbox in engine.node.sandboxes.all() {
        let id = sandbox.meta.id.as_str();
        if engine.containers.find(id).is_err()
            && let Err(error) = engine.node.remove_sandbox(id).await
        {
            tracing::warn!(sandbox = id, "left of a removed container: {error}");
        }
    }
    names::recover(engine);
    for container in engine.containers.all() {
        // One that came to a network when the daemon was killed may not have its server yet.
        if container.state().is_running() {
            let engine = engine.clone();
            tokio::spawn(async move { names::serve(&engine, &container).await });
        }
    }
    life::resume(engine);
    Ok(())
}

fn load(engine: &Engine) -> anyhow::Result<()> {
    let layout = &engine.node.host.layout;
    let all = Directory::all(&layout.root);
    fs::create_dir_all(&all).with_context(|| format!("make {}", all.display()))?;
    let mut left = Vec::new();
    for entry in fs::read_dir(&all).with_context(|| format!("read {}", all.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let directory = Directory::of(&layout.root, &name);
        if name.ends_with(".incomplete") || name.ends_with(".removing") {
            left.push(directory);
            continue;
        }
        let boot = fs::read_link(directory.boot()).ok();
        if boot.is_some_and(|boot| boot.as_os_str() != engine.node.host.boot_id.as_str()) {
            // It had `--rm`, and has ended with its boot, whatever is left of its records.
            discard(layout, &directory);
            continue;
        }
        let container = read(engine, &name, directory);
        for volume in container.record().volumes() {
            engine.volumes.hold(volume, &container.id);
        }
        engine.containers.insert(container);
    }
    // Only now is it known which volumes are in use.
    for directory in left {
        let record = disk::read::<Record>(&directory.record()).ok().and_then(Found::record);
        volumes::discard_unnamed(engine, record.iter().flat_map(Record::unnamed_volumes));
        discard(layout, &directory);
    }
    volumes::discard_of_earlier_boots(engine);
    Ok(())
}

/// Makes a container of its records. Those that cannot be read are this container's trouble: it is
/// listed with what else is known of it, and its user can remove it.
fn read(engine: &Engine, id: &str, directory: Directory) -> Arc<Container> {
    let host = &engine.node.host;
    let record = match disk::read::<Record>(&directory.record()) {
        Ok(Found::Record(record)) if record.id == id => record,
        damaged => {
            tracing::error!(
                container = id,
                "{} is damaged{}: it is listed by its id, it cannot be started, and `docker rm -f` \
                 removes it",
                directory.record().display(),
                reason(&damaged),
            );
            let run = engine.node.containers.find(id).ok();
            let created_at = modified(directory.path());
            let mut record = Record::lost(id, created_at, run.as_ref().map(|run| &run.meta));
            record.mounts = run.map(|run| volumes_of(engine, &run.meta)).unwrap_or_default();
            record
        }
    };
    let (last, is_damaged) = match disk::read::<Last>(&directory.state()) {
        Ok(Found::Record(last)) => (last, false),
        Ok(Found::Absent) => (Last::default(), false),
        damaged => {
            tracing::error!(
                container = id,
                "{} is damaged{}: how its last run ended is not known",
                directory.state().display(),
                reason(&damaged),
            );
            (Last::lost(record.created_at), true)
        }
    };
    let (layers, missing) = host.images.hold(&record.layers, Holder::Living);
    if !missing.is_empty() {
        tracing::error!(container = id, "layers of its image are gone");
    }
    // Of a lost record the image may not be known.
    let image = Digest::parse(&record.image_id).ok().map(|id| host.images.keep(&id));
    let lease = ImageLease { _image: image, _layers: layers };
    let state = directory.state();
    let container = Container::new(directory, record, last.clone(), lease, host.reserve.clone());
    if is_damaged {
        // What is there instead may be something that no record can replace.
        let replaced = trash::discard(&host.layout, &state)
            .map_err(anyhow::Error::from)
            .and_then(|()| container.change_last(|on_disk| *on_disk = last));
        if let Err(error) = replaced {
            tracing::warn!(container = id, "its state cannot be recorded: {error:#}");
        }
    }
    container
}

/// Deletes what no container is any more. What cannot be deleted is tried again by the next start.
fn discard(layout: &Layout, directory: &Directory) {
    if let Err(error) = trash::discard(layout, directory.path()) {
        tracing::warn!("{} stays until the next start: {error:#}", directory.path().display());
    }
}

/// The volumes that a run has, whoever has lost the record of them: they are in use.
fn volumes_of(engine: &Engine, run: &node::Meta) -> Vec<MountPoint> {
    let volume = |mount: &node::Mount| match &mount.source {
        MountSource::Host(source) => {
            let name = engine.volumes.name_of(source)?;
            Some(MountPoint::of_volume(name, source, &mount.container_path, !mount.readonly))
        }
        MountSource::Image { .. } => None,
    };
    run.config.mounts.iter().filter_map(volume).collect()
}

/// Why a record could not be read, if that is not about its contents.
fn reason<T>(read: &io::Result<T>) -> String {
    read.as_ref().err().map(|error| format!(" ({error})")).unwrap_or_default()
}

/// When something was changed last, in nanoseconds since the epoch; now, if its clock cannot be read.
fn modified(path: &Path) -> i64 {
    path.symlink_metadata()
        .map_or_else(|_| now(), |metadata| metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec())
}

/// Finds out what became of one, and ends what was done with it for a while.
async fn take_up(engine: &Arc<Engine>, container: &Arc<Container>) {
    find_out(engine, container).await;
    connect::mend(engine, container).await;
    life::end_pause(engine, container).await;
}

async fn find_out(engine: &Arc<Engine>, container: &Arc<Container>) {
    if let Ok(sandbox) = engine.node.sandboxes.find(&container.id) {
        engine.ports.adopt(&container.id, &sandbox.meta.config.ports);
    }
    let last = container.state().last;
    let run = engine.node.containers.find(&container.id).ok();
    match run.as_ref().map(|run| run.state()) {
        Some(State::Running { started, .. }) => {
            if !last.running {
                note_start(container, started.at);
            }
            go_on(engine, container, run, started.pid);
        }
        // Its end is not known yet: it is waited for.
        Some(State::Unknown { .. }) => go_on(engine, container, run, 0),
        Some(State::Exited { started, exited }) => {
            // Unless its end is on record already, and the daemon ended before the run was removed.
            if !last.running
                && last.finished_at != exited.at
                && let Some(started) = started
            {
                note_start(container, started.at);
            }
            has_ended(engine, container, &exited).await;
        }
        Some(State::Created) | None => {
            life::undo_run(engine, container).await;
            if last.running {
                // Nothing is left of a run that had begun: it went with an earlier boot.
                let exited = Exited { end: End::Reboot, at: now(), oom: false };
                has_ended(engine, container, &exited).await;
            } else if container.state().phase == Phase::Exited {
                // Its end is on record, and the daemon ended before it removed it.
                life::remove_if_asked(engine, container).await;
            }
        }
    }
}

/// Records the start of a run that the daemon did not come to record. Whether a user or the policy has
/// started it nobody knows: it is taken for the user, whom no answer has reached.
fn note_start(container: &Container, at: i64) {
    let noted = container.change_last(|last| {
        last.running = true;
        last.started_at = at;
        last.restarts = Restarts::default();
    });
    if let Err(error) = noted {
        tracing::warn!(container = container.id, "its start cannot be recorded: {error:#}");
    }
}

/// Supervises a run that has outlived its daemon.
fn go_on(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    run: Option<Arc<node::Container>>,
    pid: u32,
) {
    let Some(run) = run else { return };
    container.set_phase(match run.is_paused() {
        true => Phase::Paused { pid },
        false => Phase::Running { pid },
    });
    life::supervise(engine, container, run);
}

/// Finishes a run that has ended while no daemon ran.
async fn has_ended(engine: &Arc<Engine>, container: &Arc<Container>, exited: &Exited) {
    container.set_phase(Phase::Running { pid: 0 });
    if life::end(engine, container, exited, Seen::Later).await == Decision::Stay {
        life::remove_if_asked(engine, container).await;
    }
}
