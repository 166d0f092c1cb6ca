//! The harness of the black-box tests: a daemon in namespaces and directories of its own, images
//! built on the spot, registries on the loopback interface of those namespaces, a CRI client, and
//! checks of what is left afterwards.

mod broken_link;
mod builds;
mod capability;
mod cgroups;
pub mod churn;
mod client;
mod containerd;
mod daemon;
mod damage;
pub mod debian;
mod disk;
mod dockerd;
pub mod engine;
pub mod faults;
mod finish;
mod hub;
mod image;
mod machine;
mod namespaces;
pub mod oracle;
mod programs;
mod registry;
mod request;
mod spdy;

pub use broken_link::BrokenLink;
pub use builds::OldBuild;
pub use capability::{
    Capability, has_single_processor, has_systemd_scopes, has_unified_cgroups, skip_without,
};
pub use cgroups::sweep;
pub use client::Cri;
pub use containerd::{Containerd, processes, tools};
pub use daemon::Daemon;
pub use damage::Damage;
pub use disk::{Disk, Format, Loss, Random, images_are_synced};
pub use dockerd::{Dockerd, docker_tools};
pub use engine::{Engine, docker_plugins};
pub use finish::finish;
pub use image::{Entry, Image, Layer, busybox, digest, gzip, i386_program, socket_program};
pub use machine::{Machine, upstream_network};
pub use programs::{binary, faulty_programs};
pub use registry::{DockerRegistry, FakeRegistry, Request, Response, certificate, upload};
pub use request::{Config, bind, container, image_mount, pod};
pub use spdy::{Refusal, SpdyClient, upgrade};

/// A machine with a daemon that serves, and the name of a busybox image that it has pulled.
///
/// # Panics
/// The daemon does not start, or the pull fails.
pub async fn ready() -> (Machine, Daemon, Cri, String) {
    ready_with("").await
}

/// As `ready`, with more lines in the daemon's configuration.
///
/// # Panics
/// As `ready`.
pub async fn ready_with(config: &str) -> (Machine, Daemon, Cri, String) {
    let mut machine = Machine::new();
    config.clone_into(&mut machine.config);
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(&machine, Image::busybox()).await;
    (machine, daemon, cri, image)
}

/// Held by tests that measure how long something takes, and by tests that keep every processor busy
/// meanwhile. Tests of one binary run in parallel; of those that hold this only one runs at a time.
pub async fn without_load() -> tokio::sync::MutexGuard<'static, ()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ALONE.lock().await
}

/// Waits until `condition` holds. Tests use this instead of sleeping for a fixed time, so that they
/// take no longer than needed on a fast machine and do not fail on a slow one.
///
/// # Panics
/// The condition does not hold after 20 seconds. The message names `what` was awaited.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        // Polled: there are no notifications for changes in /proc, nor for the files of other
        // programs in all cases.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
