//! The end of a client that a test runs. One that hangs fails its own test with what it has printed,
//! and does not keep all others of the room waiting.

use std::{
    process::{Child, Output},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a client may take: far longer than any of them does on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Waits for the end of a client, and takes what is to be read from it.
///
/// # Panics
/// It hangs.
pub fn finish(child: Child) -> Output {
    let watchdog = Watchdog::of(&child);
    let output = child.wait_with_output().expect("wait for a client");
    watchdog.end(&output);
    output
}

/// Kills a client that hangs, so that whoever reads from it and waits for it goes on.
pub(crate) struct Watchdog {
    ended: Sender<()>,
    /// Whether it had to kill.
    watching: JoinHandle<bool>,
}

impl Watchdog {
    pub(crate) fn of(child: &Child) -> Self {
        let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
        let (ended, wait) = channel();
        let watching = thread::spawn(move || {
            let is_late = wait.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            if is_late {
                let _ = kill(pid, Signal::SIGKILL);
            }
            is_late
        });
        Self { ended, watching }
    }

    /// To be called when the client has ended.
    ///
    /// # Panics
    /// It was killed.
    pub(crate) fn end(self, output: &Output) {
        drop(self.ended);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            !self.watching.join().expect("it does not panic"),
            "a client hangs; it has printed:\n{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_client_prints_is_taken() {
        let echo = Command::new("echo").arg("it").stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(finish(echo).stdout, b"it\n");
    }
}
