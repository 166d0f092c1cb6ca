//! Another IPAM plugin, run in the place of the built-in allocator.

use std::{
    env,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use berth_cni::{Error, code};

use crate::args::Args;

/// Runs an IPAM plugin with the environment and the configuration of this call (SPEC.md, section 4,
/// "Plugin Delegation"), and returns what it prints.
///
/// # Errors
/// It is not in CNI_PATH, cannot be run, or fails, in its own words and with its own code.
pub(super) fn delegate(name: &str, args: &Args) -> Result<Vec<u8>, Error> {
    let failed = |what: String| Error::new(code::IO, format!("IPAM plugin {name}: {what}"));
    let path = find(name).ok_or_else(|| failed("not found in CNI_PATH".to_owned()))?;
    let mut child = Command::new(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // EPIPE from a plugin that ended without reading its input is ignored: its own error says
        // more.
        let _ = stdin.write_all(args.stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    match serde_json::from_slice::<Error>(&output.stdout) {
        // Plugins from before CNI 1.1.0 do not know STATUS and GC, and refuse the command as
        // invalid. They are then ready, and have nothing to collect.
        Ok(error)
            if error.code == code::INVALID_ENVIRONMENT
                && ["STATUS", "GC"].contains(&args.command.as_str()) =>
        {
            Ok(Vec::new())
        }
        Ok(error) => Err(Error { msg: format!("IPAM plugin {name}: {}", error.msg), ..error }),
        Err(_) => Err(failed(format!("{} without an error object", output.status))),
    }
}

/// The first file of this name in the directories of CNI_PATH.
fn find(name: &str) -> Option<PathBuf> {
    let places = env::var_os("CNI_PATH")?;
    env::split_paths(&places).map(|directory| directory.join(name)).find(|path| path.is_file())
}
