//! Checks file names from tars and from titles of artifacts.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::refuse::refuse;

/// Converts a name to a path that can only lead downwards. The path is empty for the root itself.
///
/// Other tools silently strip a leading slash and `..`. Here such names are refused, because an
/// image that contains them is either broken or malicious. Symbolic links on the path are not
/// checked here; `open_in_root` resolves them.
///
/// # Errors
/// `FailedPrecondition` if the name is absolute or contains `..`.
pub(crate) fn relative_path(name: &[u8]) -> anyhow::Result<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => path.push(part),
            Component::RootDir => return Err(refuse("absolute names are refused")),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refuse("names with .. are refused"));
            }
        }
    }
    Ok(path)
}
