//! What an exec is to run: the daemon's request, and how it is merged with the first process of the
//! container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::{Capabilities, Process, User};

/// The first version in which the shim reads `Overrides::capabilities`.
pub const CAPABILITIES: u32 = 4;
/// The first version in which the shim merges the request with the container's first process.
/// Earlier ones read a whole `Process`.
const MERGED_BY_SHIM: u32 = 3;

/// One more process in a running container, as the daemon asks for it. What it does not say is as
/// in the container's first process.
///
/// It is read from the descriptor that comes with `Call::Exec`, not from a packet: arguments may be
/// longer than one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// As `Process::args`.
    pub args: Vec<String>,
    /// Its only stream is a terminal. TERM is `xterm` then, unless the environment has one.
    #[serde(default)]
    pub tty: bool,
    #[serde(default)]
    pub overrides: Overrides,
}

/// How an exec differs from the first process of its container, beyond its command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// Resolved in the container, with all of its groups. HOME follows it, unless the environment
    /// has one.
    pub user: Option<User>,
    /// `NAME=value`: added to the environment, in the place of a variable with the same name. `NAME`
    /// alone takes that of the first process away.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: Option<PathBuf>,
    /// In the place of the first process' own. Shims of before version 4 do not read it.
    pub capabilities: Option<Capabilities>,
}

impl ExecRequest {
    /// Runs `args` without a terminal.
    pub fn new(args: Vec<String>) -> Self {
        Self { args, tty: false, overrides: Overrides::default() }
    }

    /// The file that comes with `Call::Exec`, as a shim reads it that speaks this version. `first`
    /// gets the first process of the container, which only old versions need.
    ///
    /// # Errors
    /// That of `first`.
    ///
    /// # Panics
    /// Never: these types always serialise.
    pub fn encode<E>(
        &self,
        version: u32,
        first: impl FnOnce() -> Result<Process, E>,
    ) -> Result<Vec<u8>, E> {
        let bytes = if version >= MERGED_BY_SHIM {
            serde_json::to_vec(self)
        } else {
            serde_json::to_vec(&self.merge(&first()?))
        };
        Ok(bytes.expect("requests have string keys only"))
    }

    /// What is to run: a process as the first one of the container, but for what the request says.
    pub fn merge(&self, first: &Process) -> Process {
        let Self { args, tty, overrides } = self;
        let mut env = first.env.clone();
        for variable in &overrides.env {
            let is_set = variable.contains('=');
            // As in Docker, a name alone says nothing of what the request itself sets.
            if is_set || first.env.iter().any(|old| name(old) == variable) {
                // If a name came twice, it would depend on the program which of the two counts:
                // getenv(3) of glibc finds the first, and bash keeps the last.
                env.retain(|old| name(old) != name(variable));
            }
            env.extend(is_set.then(|| variable.clone()));
        }
        // As Docker does: a shell without TERM cannot clear the screen or move the cursor.
        if *tty && !env.iter().any(|variable| name(variable) == "TERM") {
            env.push("TERM=xterm".to_owned());
        }
        Process {
            args: args.clone(),
            tty: *tty,
            env,
            cwd: overrides.cwd.clone().unwrap_or_else(|| first.cwd.clone()),
            user: overrides.user.clone().unwrap_or_else(|| first.user.clone()),
            capabilities: overrides.capabilities.unwrap_or(first.capabilities),
            ..first.clone()
        }
    }
}

fn name(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spec::Identity, version::VERSION};

    fn user(uid: u32) -> User {
        User {
            user: Identity::Id(uid),
            group: None,
            supplementary: vec![],
            merge_groups: true,
            group_names: vec![],
        }
    }

    fn first() -> Process {
        Process {
            args: vec!["server".into()],
            env: vec!["PATH=/bin".into(), "A=1".into(), "AB=2".into()],
            cwd: "/srv".into(),
            user: user(7),
            capabilities: Capabilities { granted: 5, ambient: 0 },
            no_new_privileges: true,
            rlimits: vec![],
            ulimits: vec![],
            oom_score_adj: Some(3),
            seccomp: true,
            apparmor: Some("profile".into()),
            selinux: None,
            tty: false,
        }
    }

    #[test]
    fn an_exec_is_the_first_process_with_another_command() {
        let merged = ExecRequest::new(vec!["ls".into()]).merge(&first());
        assert_eq!(merged.args, ["ls"]);
        let rest = Process { args: first().args, ..merged };
        let [merged, expected] = [rest, first()].map(|one| serde_json::to_value(one).unwrap());
        assert_eq!(merged, expected);
    }

    #[test]
    fn overrides_replace_user_and_directory_and_single_variables() {
        let overrides = Overrides {
            user: Some(user(8)),
            env: vec!["A=3".into(), "B=4".into()],
            cwd: Some("/tmp".into()),
            capabilities: None,
        };
        let request = ExecRequest { args: vec!["ls".into()], tty: false, overrides };
        let merged = request.merge(&first());
        assert_eq!(merged.env, ["PATH=/bin", "AB=2", "A=3", "B=4"]);
        let unset = ["A", "B=1", "B", "AB=3", "AB", "none"].map(str::to_owned).to_vec();
        let overrides_env = Overrides { env: unset, ..Overrides::default() };
        let unsetting = ExecRequest { overrides: overrides_env, ..request.clone() };
        assert_eq!(unsetting.merge(&first()).env, ["PATH=/bin", "B=1"]);
        assert_eq!(merged.user, user(8));
        assert_eq!(merged.cwd.to_str(), Some("/tmp"));
        assert!(merged.seccomp && merged.no_new_privileges, "privileges stay as they are");
        assert_eq!(merged.capabilities, first().capabilities);
        let capabilities = Some(Capabilities { granted: 7, ambient: 0 });
        let overrides = Overrides { capabilities, ..Overrides::default() };
        let request = ExecRequest { args: vec!["ls".into()], tty: false, overrides };
        assert_eq!(Some(request.merge(&first()).capabilities), capabilities);
    }

    #[test]
    fn a_terminal_brings_its_name_unless_there_is_one() {
        let mut request = ExecRequest { tty: true, ..ExecRequest::new(vec!["sh".into()]) };
        assert_eq!(request.merge(&first()).env.last().unwrap(), "TERM=xterm");
        request.overrides.env = vec!["TERM=vt100".into()];
        assert_eq!(request.merge(&first()).env.last().unwrap(), "TERM=vt100");
    }

    #[test]
    fn each_version_reads_the_form_that_is_written_for_it() {
        let overrides = Overrides { env: vec!["A=3".into()], ..Overrides::default() };
        let request = ExecRequest { args: vec!["ls".into()], tty: true, overrides };
        let newest = request.encode(VERSION, || Err("not needed")).unwrap();
        assert_eq!(serde_json::from_slice::<ExecRequest>(&newest).unwrap(), request);
        // Version 2 reads a whole process.
        let oldest = request.encode(2, || Ok::<_, ()>(first())).unwrap();
        let process: Process = serde_json::from_slice(&oldest).unwrap();
        assert_eq!((&process.args, process.tty, &process.cwd), (&request.args, true, &first().cwd));
        assert_eq!(process.env, ["PATH=/bin", "AB=2", "A=3", "TERM=xterm"]);
        // A daemon of version 2 sends one to any shim. What this one reads of it says the same:
        // that daemon overrides nothing.
        let request = ExecRequest::new(vec!["ls".into()]);
        let oldest = request.encode(2, || Ok::<_, ()>(first())).unwrap();
        assert_eq!(serde_json::from_slice::<ExecRequest>(&oldest).unwrap(), request);
        assert_eq!(request.encode(2, || Err("the spec is damaged")), Err("the spec is damaged"));
    }
}
