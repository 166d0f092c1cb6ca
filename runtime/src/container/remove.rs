//! The undo of a container, from what is on disk alone: after a failed create, for RemoveContainer, and after a crash.

use std::{fs, sync::Arc};

use anyhow::Context;
use berth_shim::record;

use super::{Meta, actor::gone, oci};
use crate::{error::Result, id::ContainerId, layout, machine::Machine, shim, trash};

/// Ends what runs and removes everything but the log. Success when there is nothing.
pub(crate) async fn remove(machine: &Arc<Machine>, id: &ContainerId) -> Result<()> {
    let directory = machine.layout.container(id);
    let state = machine.layout.container_state(id);
    shim::end(&directory, &state).await.with_context(|| format!("end container {id}"))?;
    oci::delete(machine, id).await?;
    let meta =
        record::read::<Meta>(&directory.join(layout::container::META)).context("read the container's record")?.record();
    if let Some(meta) = meta {
        machine.destroy_cgroup(&meta.cgroup).await.context("remove its cgroup")?;
    }
    gone(fs::remove_dir_all(&state)).with_context(|| format!("remove {}", state.display()))?;
    let half_made = machine.layout.half_made(id);
    trash::discard(&machine.layout, &half_made).with_context(|| format!("remove {}", half_made.display()))?;
    Ok(trash::discard(&machine.layout, &directory).with_context(|| format!("remove {}", directory.display()))?)
}
