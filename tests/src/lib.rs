//! The harness of the black-box tests: a daemon in namespaces and a directory of its own, images built on the spot, registries
//! on its loopback, a CRI client, and a look at what is left afterwards.

mod client;
mod containerd;
mod image;
mod machine;
mod registry;
mod spdy;

pub use client::{Cri, container, pod};
pub use containerd::{Containerd, processes, tools};
pub use image::{Entry, Image, Layer, busybox, digest, gzip};
pub use machine::{Daemon, Machine, binary, in_guest, upstream_network};
pub use registry::{Answer, Asked, DockerRegistry, FakeRegistry, certificate, upload};
pub use spdy::{Refusal, SpdyClient, upgrade};

/// A machine with a daemon that serves, and the name of an image with busybox that it has.
///
/// # Panics
/// When one of them cannot be had.
pub async fn ready() -> (Machine, Daemon, Cri, String) {
    ready_with("").await
}

/// As `ready`, with more in the daemon's configuration.
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

/// Waits until `condition` holds.
///
/// # Panics
/// After 20 seconds, with `what` was awaited.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        // Nothing tells of changes in /proc and in other programs' files.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
