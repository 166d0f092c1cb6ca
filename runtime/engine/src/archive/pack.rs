//! A path of a container as a tar, as `GET /containers/X/archive` and `/export` give it.

use std::{io::Write, os::unix::ffi::OsStrExt};

use berth_base::error::Result;
use berth_image::{TarForm, pack};

use super::{ContainerFiles, path::ContainerPath};

impl ContainerFiles<'_> {
    /// Writes `path` and everything below it to `to` as a tar, in the order of names. A link at
    /// the end of the path is taken itself, unless the path ends with a slash.
    ///
    /// Names begin with the last one of the path, `.` if it ends so, and a slash for the root. A
    /// container may change its files meanwhile: what cannot be read is left out, as dockerd does.
    ///
    /// # Errors
    /// `NotFound` in the words of dockerd; errors of the filesystem at the path itself; errors of
    /// `to`.
    pub fn pack(&self, path: &str, to: impl Write) -> Result<()> {
        let place = ContainerPath::new(path);
        let file = place.open(self.root).map_err(|errno| self.unreachable(path, errno))?;
        let base = match place.base().as_bytes() {
            b"/" => Vec::new(),
            base => base.to_vec(),
        };
        Ok(pack(&file, &TarForm::Below(base), to)?)
    }

    /// Writes all files to `to` as a tar, with names relative to the root.
    ///
    /// # Errors
    /// As `pack`.
    pub fn export(&self, to: impl Write) -> Result<()> {
        let root = self.root.try_clone_to_owned().map_err(anyhow::Error::from)?;
        Ok(pack(&root, &TarForm::OfRoot, to)?)
    }
}
