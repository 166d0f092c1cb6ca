//! The steps of every verb that changes something. Between two of them the disk or the kernel
//! differs, so a daemon that is killed leaves one state for each.
//!
//! Traces show their names, and `berth_step_seconds` has them as labels. The test that kills the
//! daemon at every one of them walks `ALL`.

/// A step of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub operation: &'static str,
    pub name: &'static str,
}

/// Declares a module for each operation, with a constant for each of its steps, and `ALL`.
macro_rules! steps {
    ($($operation:ident { $($step:ident = $name:literal),* $(,)? })*) => {
        $(pub mod $operation {
            use super::Step;

            $(pub const $step: Step = Step { operation: stringify!($operation), name: $name };)*
        })*

        pub const ALL: &[Step] = &[$($($operation::$step),*),*];
    };
}

steps! {
    run_sandbox {
        RECORD = "record",
        PIN = "pin",
        NETWORK = "network",
        FILES = "files",
        PAUSE = "pause",
        READY = "ready",
    }
    attach { RECORD = "record", RESULT = "result" }
    stop_sandbox { RECORD = "record", PAUSE = "pause", NETWORK = "network", UNPIN = "unpin" }
    detach { FORGET = "forget" }
    connect_sandbox { RECORD = "record" }
    disconnect_sandbox { RECORD = "record" }
    lead_sandbox { BEGUN = "begun", DONE = "done" }
    remove_sandbox { STATE = "state", DISCARD = "discard" }
    create_container { WRITE = "write", COMMIT = "commit" }
    start_container {
        TARGET = "target",
        CGROUP = "cgroup",
        LAUNCH = "launch",
        CONNECT = "connect",
    }
    exec { START = "start", WAIT = "wait" }
    stop_container { RECORD = "record", SIGNAL = "signal", KILL = "kill", FORCE = "force" }
    remove_container { SHIM = "shim", CGROUP = "cgroup", STATE = "state", DISCARD = "discard" }
    pull_image {
        HEAD = "head",
        MANIFEST = "manifest",
        RECORD = "record",
        LAYERS = "layers",
        LAYER = "layer",
        COMMIT = "commit",
        ADD = "add",
        INDEX = "index",
        FORGET = "forget",
    }
    push_image { LAYER = "layer", CONFIG = "config", MANIFEST = "manifest", NAME = "name" }
    name_image { TAG = "tag", UNTAG = "untag" }
    import_image { READ = "read" }
    write_layer { UNPACK = "unpack", COMMIT = "commit" }
    write_image { ADD = "add" }
    remove_image { INDEX = "index", COLLECT = "collect" }
    // Of the Docker Engine API: what a container of docker is beyond its runs, which are sandboxes.
    docker_create { RECORD = "record", VOLUMES = "volumes", NAME = "name" }
    docker_start { MAKE = "make", NAMES = "names", BEGUN = "begun" }
    docker_end { STATE = "state", UNDO = "undo" }
    docker_remove { RUN = "run", SET_ASIDE = "set_aside", VOLUMES = "volumes", DISCARD = "discard" }
    docker_network {
        RECORD = "record",
        BRIDGE = "bridge",
        UNBRIDGE = "unbridge",
        FORGET = "forget",
        CONNECT = "connect",
        CONNECTED = "connected",
        DISCONNECT = "disconnect",
        DISCONNECTED = "disconnected",
    }
    docker_commit { PAUSE = "pause" }
    docker_build {
        CONTEXT = "context",
        COPY = "copy",
        RUN = "run",
        COMMIT = "commit",
        TAG = "tag",
    }
    docker_rpc { RESPONSE = "response" }
    // These two have spans and metrics of their own, which tell more: the name of the plugin, and
    // the method.
    cni { ADD = "ADD", DEL = "DEL" }
    rpc { RESPONSE = "response" }
}
