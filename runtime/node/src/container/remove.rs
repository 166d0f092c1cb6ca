//! The undo of a container. It needs only what is on disk, so that the same code serves
//! RemoveContainer, a failed CreateContainer, and the start after a crash.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    error::{Result, ignore_not_found},
    id::ContainerId,
    layout,
    observe::{step, step_blocking, steps::remove_container},
    trash,
};
use berth_shim::{
    layout as shim_layout,
    record::{self, Exited, Found},
};

use super::{config::Meta, object::read_spec, oci};
use crate::{host::Host, shim};

/// Ends the container and removes everything but its log, which is the kubelet's. Success when
/// there is nothing to remove.
pub async fn remove(host: &Arc<Host>, id: &ContainerId) -> Result<()> {
    let directory = host.layout.container(id);
    let state = host.layout.container_state(id);
    // Read before anything is removed: the records that name the cgroup are in that directory.
    let cgroup = cgroup(host, &directory);
    let destroy = async {
        match &cgroup {
            Some(cgroup) => host.destroy_cgroup(cgroup).await,
            None => Ok(()),
        }
    };
    // The shim first: while it lives it writes into the directory that is removed below.
    step(remove_container::SHIM, shim::end(&directory, &state, destroy))
        .await
        .with_context(|| format!("end container {id}"))?;
    oci::delete(host, id).await?;
    // Again, because the shim may have been gone: then `shim::end` had nothing to do, and processes
    // without a shim may still be in the cgroup.
    if let Some(cgroup) = &cgroup {
        step(remove_container::CGROUP, host.destroy_cgroup(cgroup))
            .await
            .context("remove its cgroup")?;
    }
    // How it ended may be known only there, as long as the disk takes no record.
    let exit = state.join(shim_layout::EXITED);
    let exited = blocking(|| record::read::<Exited>(&exit)).ok().and_then(Found::record);
    step_blocking(remove_container::STATE, || {
        ignore_not_found(blocking(|| fs::remove_dir_all(&state)))
            .with_context(|| format!("remove {}", state.display()))
    })?;
    // The directory goes last: as long as it is there, a retry or the next start finds the rest. It
    // is renamed into the trash and deleted in the background, since it may have a million files.
    // The first of the two is that of a CreateContainer that came to no rename.
    let discarded = step_blocking(remove_container::DISCARD, || {
        [host.layout.incomplete(id), directory].iter().try_for_each(|path| {
            trash::discard(&host.layout, path).with_context(|| format!("remove {}", path.display()))
        })
    });
    if let (Err(_), Some(exited)) = (&discarded, exited) {
        // It stays, and must not become one that can be started.
        let kept = || fs::create_dir_all(&state).and_then(|()| record::write(&exit, &exited));
        blocking(kept).with_context(|| format!("write {}", exit.display()))?;
    }
    Ok(discarded?)
}

/// Its cgroup, from the daemon's record, or from the shim's where that is damaged.
fn cgroup(host: &Host, directory: &Path) -> Option<String> {
    let path = directory.join(layout::container::META);
    let meta = blocking(|| record::read::<Meta>(&path)).ok().and_then(Found::record);
    let of_spec = || host.cgroups.path_of(&read_spec(directory)?.cgroups);
    meta.map(|meta| meta.cgroup).or_else(of_spec)
}
