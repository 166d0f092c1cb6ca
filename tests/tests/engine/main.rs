//! The Docker Engine API, over its socket and by the real docker CLI.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod attach;
mod exec;
mod images;
mod life;
mod logs;
mod networks;

use berth_tests::{Cri, Daemon, Engine, Machine, engine, ready_with};

/// A machine whose daemon serves the engine, and the name of a busybox image that is there.
async fn ready() -> (Machine, Daemon, Engine, String) {
    let (machine, daemon, _cri, image) = ready_with(&engine::config()).await;
    let engine = Engine::of(&machine);
    (machine, daemon, engine, image)
}

/// As `ready`, with the other edge.
async fn ready_with_cri() -> (Machine, Daemon, Engine, Cri, String) {
    let (machine, daemon, engine, image) = ready().await;
    let cri = daemon.cri();
    (machine, daemon, engine, cri, image)
}
