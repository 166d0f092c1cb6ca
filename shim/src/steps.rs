//! The steps of the shim. Between two of them the disk or the kernel differs, so a shim that is
//! killed leaves one state for each. With the feature `faults`, tests kill, stop, delay or fail it
//! there; without, all of this compiles to nothing.

use crate::error::Result;

/// Declares the steps with their names.
macro_rules! steps {
    ($($step:ident = $name:literal,)*) => {
        /// What is about to be done. Processes come in this order: `pin` by itself; the launcher,
        /// the monitor and the first process; execs; the end.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum At {
            $($step),*
        }

        #[cfg(feature = "faults")]
        impl At {
            const ALL: &[Self] = &[$(Self::$step),*];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name),*
                }
            }
        }
    };
}

steps! {
    PinUnshare = "pin.unshare",
    PinNet = "pin.net",
    PinIpc = "pin.ipc",
    PinUts = "pin.uts",
    PinShm = "pin.shm",
    LaunchLock = "launch.lock",
    LaunchFork = "launch.fork",
    LaunchListen = "launch.listen",
    LaunchClone = "launch.clone",
    LaunchStarted = "launch.started",
    LaunchReport = "launch.report",
    InitJoin = "init.join",
    InitRootfs = "init.rootfs",
    InitAssemble = "init.assemble",
    InitEnter = "init.enter",
    InitProgram = "init.program",
    ExecCgroup = "exec.cgroup",
    ExecClone = "exec.clone",
    ExecJoin = "exec.join",
    ExecProgram = "exec.program",
    EndKill = "end.kill",
    EndCgroup = "end.cgroup",
    EndRecord = "end.record",
}

/// To be called before each step.
///
/// # Errors
/// Only in tests, which let the step fail.
#[cfg(not(feature = "faults"))]
pub(crate) fn begin(_: At) -> Result<()> {
    Ok(())
}

#[cfg(feature = "faults")]
pub(crate) fn begin(step: At) -> Result<()> {
    berth_faults::strike(step.name()).map_err(|error| crate::error::failure(error.to_string(), ""))
}

/// Lets a test ask for faults from here on, if it has said where.
#[cfg(feature = "faults")]
pub(crate) fn allow_faults() {
    berth_faults::start(At::ALL.iter().map(|step| step.name().to_owned()));
}
