//! Programs that can be killed, stopped, delayed or made to fail at each named step.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{eventually, finish::finish, machine::Machine, programs::faulty_programs};

/// The variable that names the file in which an action is asked for, or `list`.
const VARIABLE: &str = "BERTH_FAULTS";

/// The names of the steps of a program.
///
/// # Panics
/// It has not been built with faults.
pub fn steps(program: &str) -> Vec<String> {
    let mut command = Command::new(faulty_programs().join(program));
    let piped = command.env(VARIABLE, "list").stdin(Stdio::null()).stdout(Stdio::piped());
    let output = finish(piped.spawn().expect("a program with faults"));
    let names = String::from_utf8(output.stdout).expect("names");
    let names: Vec<String> = names.lines().map(str::to_owned).collect();
    assert!(output.status.success() && names.len() > 10, "{program}: {names:?}");
    names
}

impl Machine {
    /// A machine whose programs can be made to fail.
    ///
    /// # Panics
    /// As `new`.
    pub fn with_faults() -> Self {
        let mut machine = Self::new();
        machine.programs = Some(faulty_programs());
        let file = machine.faults();
        fs::write(&file, "").expect("make a file");
        machine.environment.push((VARIABLE.to_owned(), file.display().to_string()));
        machine
    }

    /// Asks for `kill`, `stop` or `fail` at a step, once.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn arm(&self, step: &str, action: &str) {
        // In place: the programs have the file open.
        fs::write(self.faults(), format!("{step} {action}")).expect("ask for a fault");
    }

    /// Waits until a program has come to the step.
    ///
    /// # Panics
    /// None does.
    pub async fn reached(&self, step: &str) {
        let file = self.faults();
        eventually(&format!("{step} reached"), async || {
            fs::read(&file).expect("read a file").is_empty()
        })
        .await;
    }

    fn faults(&self) -> PathBuf {
        self.path("faults")
    }
}
