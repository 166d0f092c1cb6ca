//! The name of a process, as proc_pid_comm(5) shows it. While a container starts it says what is
//! being done: the daemon reads it when a launch takes long, and it costs one system call
//! otherwise.

use std::ffi::CString;

use berth_shim::record::Stage;
use nix::sys::prctl;

/// Takes the name of the monitor, which ps(1) shows.
pub(crate) fn take_name() {
    // prctl(2) has no error for a valid string, and a name is for people only.
    let _ = prctl::set_name(c"berth-shim");
}

/// Takes the name of a step that may take long and is about to begin.
pub(crate) fn stage(stage: Stage) {
    if let Ok(name) = CString::new(stage.to_string()) {
        // As above.
        let _ = prctl::set_name(&name);
    }
}
