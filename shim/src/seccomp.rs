//! Loads the filter that the daemon compiled. When depends on no_new_privs: see `credentials`.

use std::{fs, io, path::Path};

use berth_shim::layout;

use crate::{
    error::{Result, Step},
    sys,
};

/// The filter of a container's directory; kept in memory because an exec cannot read it once it is inside.
pub(crate) fn read(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(layout::SECCOMP);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.step_on("read", &path),
    }
}

/// From here on the filter decides; an empty one decides nothing.
pub(crate) fn load(filter: &[u8]) -> Result<()> {
    if filter.is_empty() { Ok(()) } else { sys::load_seccomp(filter).step("load the seccomp filter") }
}
