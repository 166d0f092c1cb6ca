//! AppArmor: whether this kernel has it, which profiles are loaded, and the one of containers that
//! ask for the runtime's default.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, bail};
use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// A line for each profile: its name, and its mode in parentheses.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const DEFAULT: &str = "berth-default";

/// What a container asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// A profile that the machine's administrator has loaded, by its name.
    Localhost(String),
}

/// What was found of AppArmor when the daemon started.
#[derive(Debug)]
pub struct AppArmor {
    enabled: bool,
    /// Whether the default profile is loaded. That is tried once, when the first container needs
    /// it, and fails on a machine without `apparmor_parser`.
    default: OnceLock<bool>,
}

impl AppArmor {
    pub fn detect() -> Self {
        let enabled = fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
            && Path::new(LOADED).exists();
        Self { enabled, default: OnceLock::new() }
    }

    /// The profile of a container; `None` for none. May run `apparmor_parser`, once.
    ///
    /// # Errors
    /// `InvalidArgument` for a profile that is not loaded, or if AppArmor is not enabled.
    pub fn choose(&self, asked: &Profile) -> Result<Option<String>> {
        match asked {
            Profile::Unconfined => Ok(None),
            Profile::RuntimeDefault if !self.enabled => Ok(None),
            Profile::RuntimeDefault => {
                // Containers that start meanwhile wait for the one that loads it.
                Ok(self.default.get_or_init(load_default).then(|| DEFAULT.to_owned()))
            }
            Profile::Localhost(name) if !self.enabled => Err(Error::invalid(format!(
                "AppArmor profile {name:?}: AppArmor is not enabled on this machine"
            ))),
            Profile::Localhost(name) => {
                // Read each time, since profiles come and go.
                let loaded =
                    fs::read_to_string(LOADED).with_context(|| format!("read {LOADED}"))?;
                if !is_loaded(name, &loaded) {
                    let text = format!("AppArmor profile {name:?} is not loaded");
                    return Err(Error::invalid(text));
                }
                Ok(Some(name.clone()))
            }
        }
    }
}

fn is_loaded(name: &str, loaded: &str) -> bool {
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

/// Loads the default profile. Whether that worked.
fn load_default() -> bool {
    // The rule for user namespaces came with AppArmor 4; before, it is a syntax error.
    let result = load(&profile("userns,")).or_else(|_| load(&profile("")));
    if let Err(error) = &result {
        tracing::warn!(
            "containers run without an AppArmor profile, as it is not loaded: {error:#}"
        );
    }
    result.is_ok()
}

fn load(text: &str) -> anyhow::Result<()> {
    // Replaced even if it is loaded: an older berthd may have loaded another version of it.
    let mut parser = Command::new("apparmor_parser")
        .args(["--skip-cache", "--replace"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run apparmor_parser")?;
    // It fails if the parser has ended early, which says why on standard error.
    let _ = parser.stdin.take().context("no standard input")?.write_all(text.as_bytes());
    let output = parser.wait_with_output().context("run apparmor_parser")?;
    if !output.status.success() {
        bail!("apparmor_parser: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The default profile, with one more rule. It allows everything except what reaches the machine:
/// no mounts, no writes to settings of the kernel, no ptrace(2) of other programs.
///
/// It also denies the kernel's ciphers (AF_ALG, CVE-2026-31431). seccomp does so for 64-bit
/// programs, but cannot look into the arguments of socketcall(2), which 32-bit programs use.
///
/// Signals may come from containers with the same profile and from unconfined processes, which the
/// shims are: without that rule no container could be stopped.
fn profile(more: &str) -> String {
    format!(
        "profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
  file,
  capability,
  network,
  deny network alg,
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
        for (name, expected) in
            [("a//b", true), ("profile with words", true), ("a", false), ("words", false)]
        {
            assert_eq!(is_loaded(name, loaded), expected, "{name}");
        }
    }

    #[test]
    fn a_machine_without_it_ignores_the_default_and_refuses_a_name() {
        let host = AppArmor { enabled: false, default: OnceLock::new() };
        assert_eq!(host.choose(&Profile::RuntimeDefault).unwrap(), None);
        assert_eq!(host.choose(&Profile::Unconfined).unwrap(), None);
        assert!(
            host.choose(&Profile::Localhost("x".into()))
                .unwrap_err()
                .message
                .contains("not enabled")
        );
    }
}
