//! The feature `faults`: tests make the daemon kill itself, stop, dawdle or fail at a step.

use berth_base::{
    blocking::blocking,
    error::{Error, Kind, Result},
    observe::{self, Step, steps},
};

#[cfg(not(debug_assertions))]
compile_error!("the feature `faults` is for builds with debug assertions: no other looks at steps");

/// Lets a test ask for faults from here on, if it has said where.
pub(crate) fn start() {
    berth_faults::start(steps::ALL.iter().copied().map(name));
    // Set once, and by nobody else.
    let _ = observe::BEFORE_STEP.set(strike);
}

fn strike(step: Step) -> Result<()> {
    blocking(|| berth_faults::strike(&name(step)))
        .map_err(|error| Error::new(Kind::Internal, error.to_string()))
}

fn name(step: Step) -> String {
    format!("{}.{}", step.operation, step.name)
}
