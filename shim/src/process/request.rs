//! The file that comes with the call of an exec.

use std::{fs::File, io::Read, os::fd::OwnedFd};

use berth_shim::exec_request::ExecRequest;

use crate::error::{Result, Step, failure};

/// The longest request of an exec, in bytes. Linux takes at most 6 MiB of arguments and environment
/// (execve(2)), and some of their characters are longer in JSON.
const MAX_REQUEST: u64 = 16 << 20;

/// Reads the file that comes with `Call::Exec`.
pub(crate) fn read(request: OwnedFd) -> Result<ExecRequest> {
    let mut bytes = Vec::new();
    File::from(request).take(MAX_REQUEST).read_to_end(&mut bytes).step("read an exec's request")?;
    serde_json::from_slice(&bytes)
        .map_err(|error| failure(format!("an exec's request: {error}"), ""))
}

/// Refuses a request with the wrong number of standard streams.
pub(crate) fn check(request: &ExecRequest, streams: &[OwnedFd]) -> Result<()> {
    let wanted = if request.tty { 1 } else { 3 };
    if streams.len() == wanted {
        return Ok(());
    }
    Err(failure(format!("an exec needs {wanted} descriptors, and got {}", streams.len()), ""))
}
