//! Pods that stay: as many as a part wants.

use std::time::{Duration, Instant};

use anyhow::Result;
use berth_proto::v1;
use berth_tests::{Machine, container, pod};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::rig::{Target, create};

/// How many pods are made or removed at once.
const AT_ONCE: usize = 4;

/// Pods of one container each, of one runtime.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) pods: Vec<Pod>,
}

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

impl Fleet {
    /// Makes more pods, until there are `count`.
    pub(crate) async fn grow(
        &mut self,
        target: &Target,
        (machine, image): (&Machine, &str),
        count: usize,
    ) -> Result<()> {
        let name = |number| format!("fleet-{}-{number}", target.name);
        let pods = (self.pods.len()..count).map(|number| run(target, machine, image, name(number)));
        let more: Vec<Pod> = stream::iter(pods).buffer_unordered(AT_ONCE).try_collect().await?;
        self.pods.extend(more);
        Ok(())
    }

    pub(crate) async fn end(self, target: &Target) -> Result<()> {
        let ends = self.pods.into_iter().map(|pod| remove(target, pod.sandbox));
        stream::iter(ends).buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// One pod in which a container sleeps.
pub(crate) async fn run(
    target: &Target,
    machine: &Machine,
    image: &str,
    name: String,
) -> Result<Pod> {
    Ok(timed(target, machine, image, name).await?.0)
}

/// As `run`, with the time of RunPodSandbox alone.
pub(crate) async fn timed(
    target: &Target,
    machine: &Machine,
    image: &str,
    name: String,
) -> Result<(Pod, Duration)> {
    let config = pod(machine, &name);
    let begun = Instant::now();
    let sandbox = target.cri.run_pod(config.clone()).await?;
    let taken = begun.elapsed();
    let container = create(&target.cri, &sandbox, &config, sleeper("c", image)).await?;
    target.cri.start(&container).await?;
    Ok((Pod { sandbox, container }, taken))
}

pub(crate) async fn remove(target: &Target, sandbox: String) -> Result<()> {
    target.cri.stop_pod(&sandbox).await?;
    Ok(target.cri.remove_pod(&sandbox).await?)
}

/// A container that sleeps.
pub(crate) fn sleeper(name: &str, image: &str) -> v1::ContainerConfig {
    container(name, image, "exec sleep 100000")
}
