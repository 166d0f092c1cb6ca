//! Makes a program kill itself, stop, dawdle or fail at one of its named steps, once.
//!
//! The programs of berth have this only with their feature `faults`. A test writes `STEP ACTION`
//! into the file that the variable `BERTH_FAULTS` names, at any time. Whichever process comes to
//! that step first empties the file and acts, so a test also sees whether the step was reached.
//! With `BERTH_FAULTS=list` a program prints the names of its steps and ends.
#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io,
    os::unix::fs::FileExt,
    process,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};

/// The variable of the environment.
const VARIABLE: &str = "BERTH_FAULTS";
/// The longest content of the file, in bytes.
const LONGEST: usize = 128;
/// How long a delay takes.
const DELAY: Duration = Duration::from_millis(500);

static FILE: OnceLock<File> = OnceLock::new();

/// To be called once, before the first step. `steps` are the names of all steps of the program.
pub fn start(steps: impl IntoIterator<Item = String>) {
    let Some(path) = env::var_os(VARIABLE) else { return };
    if path == OsStr::new("list") {
        #[expect(clippy::print_stdout, reason = "what was asked for")]
        steps.into_iter().for_each(|step| println!("{step}"));
        process::exit(0);
    }
    // Opened now, and with the descriptor kept: a process that has entered a container sees none of
    // the host's paths.
    if let Ok(file) = File::options().read(true).write(true).open(path) {
        let _ = FILE.set(file);
    }
}

/// To be called before each step.
///
/// # Errors
/// A test wants this step to fail.
pub fn strike(step: &str) -> io::Result<()> {
    match FILE.get().and_then(|file| claim(file, step)).as_deref() {
        Some("kill") => {
            let _ = kill_process(getpid(), Signal::KILL);
            // The first process of a PID namespace is immune to its own signals.
            process::exit(137)
        }
        Some("stop") => Ok(kill_process(getpid(), Signal::STOP)?),
        Some("delay") => {
            #[expect(clippy::disallowed_methods, reason = "what was asked for")]
            thread::sleep(DELAY);
            Ok(())
        }
        Some("fail") => Err(io::Error::other(format!("a test lets {step} fail"))),
        _ => Ok(()),
    }
}

/// The action that is asked for at this step, once.
fn claim(file: &File, step: &str) -> Option<String> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = [0; LONGEST];
    let length = file.read_at(&mut bytes, 0).ok()?;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let (name, action) = text.trim().split_once(' ')?;
    if name != step {
        return None;
    }
    file.set_len(0).ok()?;
    Some(action.to_owned())
}
