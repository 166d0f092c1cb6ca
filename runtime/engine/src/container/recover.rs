//! Start-up: the containers of an earlier daemon, and what it left undone.

use std::{fs, sync::Arc};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, trash};
use berth_image::{Digest, Holder, LayerKey};
use berth_node::container::{self as node, State};
use berth_shim::record::{self as disk, End, Exited, Found};

use super::{
    base_layer,
    life::{self, Seen},
    object::{Container, ImageLease},
    record::{Directory, Record},
    state::{Last, Phase},
};
use crate::{
    engine::Engine,
    restart::{Decision, Restarts},
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
    life::resume(engine);
    Ok(())
}

fn load(engine: &Engine) -> anyhow::Result<()> {
    let layout = &engine.node.host.layout;
    let all = Directory::all(&layout.root);
    fs::create_dir_all(&all).with_context(|| format!("make {}", all.display()))?;
    for entry in fs::read_dir(&all).with_context(|| format!("read {}", all.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".incomplete") {
            trash::discard(layout, &entry.path())?;
            continue;
        }
        let directory = Directory::of(&layout.root, &name);
        let boot = fs::read_link(directory.boot()).ok();
        if boot.is_some_and(|boot| boot.as_os_str() != engine.node.host.boot_id.as_str()) {
            // It had `--rm`, and has ended with its boot, whatever is left of its records.
            trash::discard(layout, directory.path())?;
            continue;
        }
        match disk::read::<Record>(&directory.record())? {
            Found::Record(record) => {
                let last = disk::read::<Last>(&directory.state())?.record().unwrap_or_default();
                let keys: Vec<LayerKey> = record.layers.clone();
                let images = &engine.node.host.images;
                let image = Digest::parse(&record.image_id)?;
                let (layers, damaged) = images.hold(&keys, Holder::Living);
                let lease = ImageLease { _image: images.keep(&image), _layers: layers };
                if !damaged.is_empty() {
                    tracing::error!(container = record.id, "layers of its image are gone");
                }
                let reserve = engine.node.host.reserve.clone();
                engine.containers.insert(Container::new(directory, record, last, lease, reserve));
            }
            Found::Absent | Found::Damaged => tracing::error!(
                container = name,
                "its record is damaged: it is not listed, and its files are in {}",
                directory.path().display()
            ),
        }
    }
    Ok(())
}

/// Finds out what became of one.
async fn take_up(engine: &Arc<Engine>, container: &Arc<Container>) {
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
