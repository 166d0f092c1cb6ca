//! The Docker Engine API, over its socket and by the real docker CLI.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod attach;
mod build;
mod build_steps;
mod changes;
mod churn;
mod commit;
mod compose;
mod compose_redis;
mod copy;
mod damage;
mod default_route;
mod exec;
mod health;
mod host_config;
mod image_archives;
mod image_list;
mod image_names;
mod image_parents;
mod images;
mod import;
mod import_config;
mod ipv6_networks;
mod life;
mod login;
mod logs;
mod names;
mod namespaces;
mod networks;
mod pause;
mod portainer;
mod power;
mod pull;
mod push;
mod restarts;
mod sdk;
mod security;
mod socket;
mod start;
mod steps;
mod tutorial_containers;
mod tutorial_cowsay;
mod tutorial_gpus;
mod tutorial_images;
mod tutorial_networks;
mod tutorial_redis;
mod tutorial_registry;
mod user_networks;
mod volumes;

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

/// What a shell script prints in a container that `docker run --rm OPTIONS` makes, and ends well.
fn run(machine: &Machine, options: &[&str], image: &str, script: &str) -> String {
    let mut arguments = vec!["run", "--rm"];
    arguments.extend(options);
    arguments.extend([image, "sh", "-c", script]);
    succeed(machine, &arguments)
}

/// What the docker CLI prints, without the end of its line.
fn succeed(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.docker(arguments);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "docker {arguments:?}: {out}{err}");
    out.trim_end().to_owned()
}

/// What the docker CLI says when it fails.
fn fail(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.docker(arguments);
    assert!(!output.status.success(), "docker {arguments:?} succeeds");
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}
