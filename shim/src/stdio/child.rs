//! The standard streams that a process of the container gets.

use std::{
    fs::OpenOptions,
    io::Write,
    os::fd::{AsFd, OwnedFd},
};

use berth_shim::spec::Process;

use crate::{
    descriptor::{chown_pipes, replace_null},
    error::{Result, Step},
    sys,
};

/// What the container's first process gets.
pub(crate) enum ChildStdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// Nothing yet: the process makes a pty itself, in the container's own devpts, and sends the
    /// master end back.
    Terminal,
}

impl ChildStdio {
    /// Gives pipes to an id of the host, so that root of a user namespace owns them, and can give
    /// them to the program's user later.
    pub(crate) fn chown(&self, uid: u32, gid: u32) {
        if let Self::Pipes { stdin, stdout, stderr } = self {
            chown_pipes(&[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], uid, gid);
        }
    }

    /// Replaces the host's /dev/null by the container's: see `descriptor::replace_null`. Outputs
    /// are always pipes.
    pub(crate) fn replace_null(self) -> Result<Self> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                Ok(Self::Pipes { stdin: replace_null(stdin)?, stdout, stderr })
            }
            Self::Terminal => Ok(Self::Terminal),
        }
    }
}

/// Makes pipes the standard streams of this process.
pub(crate) fn install_first(stdio: ChildStdio) -> Result<()> {
    let ChildStdio::Pipes { stdin, stdout, stderr } = stdio else { return Ok(()) };
    sys::replace_stdio(stdin, 0).step("install stdin")?;
    sys::replace_stdio(stdout, 1).step("install stdout")?;
    sys::replace_stdio(stderr, 2).step("install stderr")
}

/// Makes the descriptors that came with an exec the standard streams of this process: stdin, stdout
/// and stderr, or one terminal for all three.
pub(crate) fn install(process: &Process, streams: Vec<OwnedFd>) -> Result<()> {
    if process.tty {
        return streams.into_iter().try_for_each(take_terminal);
    }
    for (number, fd) in (0..).zip(streams) {
        sys::replace_stdio(fd, number).step("install stdio")?;
    }
    Ok(())
}

/// Makes the slave end of a pty all three standard streams.
pub(crate) fn take_terminal(slave: OwnedFd) -> Result<()> {
    for number in 0..=2 {
        sys::replace_stdio(&slave, number).step("install the terminal")?;
    }
    Ok(())
}

/// The host's /dev/null, for reading.
pub(super) fn null() -> Result<OwnedFd> {
    OpenOptions::new().read(true).open("/dev/null").map(OwnedFd::from).step_on("open", "/dev/null")
}

/// Streams for a process that needs none: the `create` of another OCI runtime, for a container with
/// a terminal.
pub(crate) fn discard() -> Result<ChildStdio> {
    // What is still in std's buffer would be written twice, by this process and by its parent.
    std::io::stdout().flush().step("flush")?;
    Ok(ChildStdio::Pipes { stdin: null()?, stdout: null_output()?, stderr: null_output()? })
}

fn null_output() -> Result<OwnedFd> {
    let null = OpenOptions::new().write(true).open("/dev/null");
    null.map(OwnedFd::from).step_on("open", "/dev/null")
}
