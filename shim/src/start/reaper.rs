//! The process in front of a program that is not made to be the first of a PID namespace (`docker run
//! --init`): it reaps what is left to it, passes signals on, and ends as the program does.

use nix::{
    sys::{
        prctl,
        signal::SigSet,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid, setpgid, tcsetpgrp},
};

use crate::{
    error::{Result, Step},
    seccomp::Pass,
    sys,
};

/// Forks the process that will be the program, and returns in that. This one stays.
pub(crate) fn stay(terminal: bool, pass: Pass) -> Result<()> {
    // What a list of processes shows; the arguments of the shim are of no interest there. Before the
    // fork, or a quick program would find another process in front of it.
    let _ = sys::set_command_line(c"/sbin/docker-init");
    let _ = prctl::set_name(c"docker-init");
    // The child gets them back when it executes its program.
    SigSet::all().thread_block().step("block signals")?;
    match sys::fork(pass.0).step("clone3 of the program")? {
        None => {
            // A group of its own, or what the terminal sends to the group, as with Ctrl-C, would
            // reach the program twice. Without one it works all the same.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            if terminal {
                let _ = tcsetpgrp(rustix::stdio::stdin(), getpid());
            }
            Ok(())
        }
        Some(program) => reap(program),
    }
}

fn reap(program: Pid) -> ! {
    // The streams end with the program, and the channel when it runs. If this is not allowed, the
    // start fails, since the channel never ends.
    let _ = sys::close_from(0);
    loop {
        match sys::wait_for_signal() {
            Ok(libc::SIGCHLD) => {
                while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                    match status {
                        WaitStatus::StillAlive => break,
                        WaitStatus::Exited(pid, code) if pid == program => std::process::exit(code),
                        WaitStatus::Signaled(pid, signal, _) if pid == program => {
                            std::process::exit(128 + signal as i32)
                        }
                        _ => {}
                    }
                }
            }
            // These come of the use of the terminal from the background, and are not for others.
            Ok(libc::SIGTTIN | libc::SIGTTOU) => {}
            // The program may be ending, which SIGCHLD tells.
            Ok(signal) => _ = sys::kill(program, signal),
            Err(_) => {}
        }
    }
}
