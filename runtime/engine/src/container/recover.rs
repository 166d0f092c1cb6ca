//! Start-up: the containers of an earlier daemon, and what it left undone.

use std::{fs, sync::Arc};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, trash};
use berth_image::{Holder, LayerKey};
use berth_node::container::{self as node, State};
use berth_shim::record::{self as disk, End, Exited, Found};

use super::{
    base_layer,
    life::{self, Seen},
    object::Container,
    record::{Directory, Record},
    state::{Last, Phase},
};
use crate::{engine::Engine, restart::Decision};

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
        match disk::read::<Record>(&directory.record())? {
            Found::Record(record) => {
                let last = disk::read::<Last>(&directory.state())?.record().unwrap_or_default();
                let keys: Vec<LayerKey> = record.layers.clone();
                let (lease, damaged) = engine.node.host.images.hold(&keys, Holder::Living);
                if !damaged.is_empty() {
                    tracing::error!(container = record.id, "layers of its image are gone");
                }
                engine.containers.insert(Container::new(directory, record, last, lease));
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
    if last.removing {
        container.set_phase(Phase::Removing);
        if let Err(error) = life::discard(engine, container).await {
            tracing::warn!(container = container.id, "remove it: {}", error.message);
        }
        return;
    }
    let run = engine.node.containers.find(&container.id).ok();
    match run.as_ref().map(|run| run.state()) {
        Some(State::Running { started, .. }) => {
            if last.started_at == 0 || last.started_at < last.finished_at {
                let _ = container.change_last(|last| last.started_at = started.at);
            }
            go_on(engine, container, run, started.pid);
        }
        // Its end is not known yet: it is waited for.
        Some(State::Unknown { .. }) => go_on(engine, container, run, 0),
        Some(State::Exited { exited, .. }) => has_ended(engine, container, &exited).await,
        // The start did not come to its end.
        Some(State::Created) | None if last.wanted => {
            life::undo_run(engine, container).await;
            // Where nothing is left of a run that had begun, it went with an earlier boot.
            if last.started_at > last.finished_at {
                let exited = Exited { end: End::Reboot, at: now(), oom: false };
                has_ended(engine, container, &exited).await;
            } else if let Err(error) = container.change_last(|last| last.wanted = false) {
                tracing::warn!(container = container.id, "{error:#}");
            }
        }
        Some(State::Created) | None => {
            life::undo_run(engine, container).await;
            // Its end is on record, and the daemon ended before it removed it.
            if container.state().phase == Phase::Exited {
                remove_if_asked(engine, container).await;
            }
        }
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
        remove_if_asked(engine, container).await;
    }
}

async fn remove_if_asked(engine: &Arc<Engine>, container: &Arc<Container>) {
    if container.record().host_config.auto_remove
        && let Err(failure) = life::remove(engine, container, &container.id, true).await
    {
        tracing::warn!(container = container.id, "remove it after its end: {}", failure.message);
    }
}
