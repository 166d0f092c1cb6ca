//! What changes while a container exists: its resources, and the file that its log goes to.

use std::sync::Arc;

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    error::{Error, Result},
    layout,
};
use berth_shim::{protocol::Call, record};

use super::{object::Container, state::State};
use crate::{cgroup::Resources, host::Host};

impl Container {
    /// UpdateContainerResources: changes all of what is asked for, or nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for what the kernel refuses.
    pub async fn update(&self, host: &Arc<Host>, change: Resources) -> Result<()> {
        // A start that is under way would set the limits of before, after this has changed them.
        let _life = self.life().await;
        let before = self.resources();
        let mut after = before.changed(change);
        if matches!(self.state(), State::Running { .. }) {
            // The score belongs to each process (/proc/PID/oom_score_adj), not to the cgroup. The
            // processes that run keep theirs, so the record keeps it too.
            after.oom_score_adj = before.oom_score_adj;
            let updated = host.update_cgroup(&self.meta.cgroup, &before, after.clone()).await;
            // The container may have ended since its state was read: its cgroup has no process then,
            // and is gone before its shim is. That is no fault of the request: as for any container
            // that has ended, all that is left to change is the record.
            if let Err(error) = updated
                && !host.cgroups.processes(&self.meta.cgroup).is_empty()
            {
                return Err(Error::invalid(format!("{error:#}")));
            }
        }
        // The record follows the kernel: a crash in between leaves limits that a status does not
        // show yet, and the kubelet's retry brings both in line.
        let mut meta = self.meta.clone();
        meta.config.resources = after.clone();
        let path = host.layout.container(&self.meta.id).join(layout::container::META);
        blocking(|| record::write(&path, &meta))
            .with_context(|| format!("write {}", path.display()))?;
        self.set_resources(after);
        Ok(())
    }

    /// ReopenContainerLog, after the kubelet has renamed the log to rotate it. Later lines go to a
    /// new file under the old name, which exists when this returns.
    ///
    /// # Errors
    /// `FailedPrecondition` unless the container runs.
    pub async fn reopen_log(&self) -> Result<()> {
        let connection = self.running()?;
        let reopened = connection.call(Call::ReopenLog, &[]).await;
        reopened.map(drop).map_err(|error| Error::from(error).during("reopen the log"))
    }
}
