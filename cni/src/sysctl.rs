//! Switches below /proc/sys.

use std::fs;

use berth_cni::{Error, code};

/// Writes 1 to a file below /proc/sys, where it is not 1 already: on a write to some of them, as to
/// `ip_forward`, the kernel walks all interfaces, even when the value stays the same.
///
/// # Errors
/// The file cannot be written, as where /proc/sys is mounted read-only.
pub(crate) fn enable(name: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{name}");
    // A file that cannot be read is written to, whose error says what is wrong.
    if fs::read(&path).is_ok_and(|value| value.starts_with(b"1")) {
        return Ok(());
    }
    fs::write(&path, "1").map_err(|error| Error::new(code::IO, format!("write {path}: {error}")))
}
