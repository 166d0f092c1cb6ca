//! AppArmor: whether this kernel has it, the profile of containers that ask for the runtime's, and which ones are loaded.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// One line for each: a name, and its mode in parentheses.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const DEFAULT: &str = "berth-default";

/// What a container asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Profile {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// Loaded by somebody else, by its name.
    Localhost(String),
}

/// A kernel, which has AppArmor or not.
#[derive(Debug)]
pub(crate) struct AppArmor {
    enabled: bool,
    /// Loaded when the first container needs it; a machine that cannot has none.
    default: OnceLock<bool>,
}

impl AppArmor {
    pub(crate) fn detect() -> Self {
        let enabled = fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')) && Path::new(LOADED).exists();
        Self { enabled, default: OnceLock::new() }
    }

    /// The profile to run under; `None` leaves the daemon's. May run `apparmor_parser`, once.
    ///
    /// # Errors
    /// `InvalidArgument` for one that is not loaded, or that this machine cannot have.
    pub(crate) fn choose(&self, asked: &Profile) -> Result<Option<String>> {
        match asked {
            Profile::Unconfined => Ok(None),
            Profile::RuntimeDefault if !self.enabled => Ok(None),
            Profile::RuntimeDefault => Ok(self.default.get_or_init(load_default).then(|| DEFAULT.to_owned())),
            Profile::Localhost(name) if !self.enabled => {
                Err(Error::invalid(format!("AppArmor profile {name:?}: AppArmor is not enabled on this machine")))
            }
            Profile::Localhost(name) => {
                let loaded = fs::read_to_string(LOADED).with_context(|| format!("read {LOADED}"))?;
                match is_loaded(name, &loaded) {
                    true => Ok(Some(name.clone())),
                    false => Err(Error::invalid(format!("AppArmor profile {name:?} is not loaded"))),
                }
            }
        }
    }
}

fn is_loaded(name: &str, loaded: &str) -> bool {
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

fn load_default() -> bool {
    // User namespaces are a word since version 4, and an error before.
    let result = load(&profile("userns,")).or_else(|_| load(&profile("")));
    if let Err(error) = &result {
        tracing::warn!("containers run without an AppArmor profile: {error:#}");
    }
    result.is_ok()
}

fn load(text: &str) -> anyhow::Result<()> {
    let mut parser = Command::new("apparmor_parser")
        .args(["--skip-cache", "--replace"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run apparmor_parser")?;
    // A parser that leaves early says why on standard error.
    let _ = parser.stdin.take().context("no standard input")?.write_all(text.as_bytes());
    let output = parser.wait_with_output().context("run apparmor_parser")?;
    if !output.status.success() {
        bail!("apparmor_parser: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Everything but what reaches the machine: no mounts, no writes to kernel settings, no look at other programs. Signals come from the
/// daemon's shims, which are unconfined (without that line nothing could be stopped), and from its like.
fn profile(more: &str) -> String {
    format!(
        "profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
  file,
  capability,
  network,
  unix,
  umount,
  {more}
  signal (receive) peer=unconfined,
  signal (send, receive) peer={DEFAULT},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT},

  deny mount,
  deny /proc/* w,
  deny /proc/{{acpi,bus,fs,irq,scsi,tty}}/** w,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /proc/sys/{{abi,debug,dev,fs,vm}}/** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /sys/[^f]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/kernel/{{security,debug,tracing}}/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_profiles_are_known_by_their_whole_name() {
        let loaded = "a//b (enforce)\nprofile with words (complain)\n";
        for (name, expected) in [("a//b", true), ("profile with words", true), ("a", false), ("words", false)] {
            assert_eq!(is_loaded(name, loaded), expected, "{name}");
        }
    }

    #[test]
    fn a_machine_without_it_ignores_the_default_and_refuses_a_name() {
        let host = AppArmor { enabled: false, default: OnceLock::new() };
        assert_eq!(host.choose(&Profile::RuntimeDefault).unwrap(), None);
        assert_eq!(host.choose(&Profile::Unconfined).unwrap(), None);
        assert!(host.choose(&Profile::Localhost("x".into())).unwrap_err().message.contains("not enabled"));
    }
}
