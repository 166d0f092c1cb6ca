//! ImageService: registries, layers, archives, credentials and signatures. A test whose pull fails
//! also checks that nothing of it is left.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod attacks;
mod check;
mod content;
mod credentials;
mod disk;
mod import;
mod interrupted;
mod large;
mod layers;
mod mirrors;
mod pull;
mod ranges;
mod redirects;
mod token;
mod trust;
mod unpacker;

use std::fs;

use berth_tests::{Cri, Daemon, Machine};

async fn ready() -> (Machine, Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

/// Asserts that nothing is left of a pull that failed.
fn assert_no_image(machine: &Machine) {
    let names = |name: &str| {
        let entries = fs::read_dir(machine.path(name)).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != "empty")
            .collect::<Vec<_>>()
    };
    assert_eq!(names("root/layers"), Vec::<String>::new());
    assert_eq!(names("root/images/blobs/sha256"), Vec::<String>::new());
}
