//! The directory in which libcni and its tools (`cnitool`, Multus, agents of CNI plugins) look for
//! the results of plugins. berthd has a link to its own record there, so that there is one truth.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::attachment::{Attachment, remove_file};

#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
}

impl Cache {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Shows an attachment whose record is `file`. A pod works without it, so an error is only
    /// logged.
    pub(super) fn add(&self, attachment: &Attachment, file: &Path) {
        let link = self.directory.join(attachment.cache_name());
        let linked = match symlink(file, &link) {
            // Made when it is first needed, as libcni does.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.directory).and_then(|()| symlink(file, &link))
            }
            result => result,
        };
        if let Err(error) = linked {
            tracing::debug!("{}: {error}", link.display());
        }
    }

    pub(super) fn remove(&self, attachment: &Attachment) -> anyhow::Result<()> {
        remove_file(&self.directory.join(attachment.cache_name()))
    }

    /// Removes links to records in `attachments` that are gone. A crash that came between the
    /// removal of the two leaves one.
    pub(super) fn remove_dangling(&self, attachments: &Path) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            // Links and files of others are left alone.
            if target.starts_with(attachments)
                && !target.exists()
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::debug!("{}: {error}", entry.path().display());
            }
        }
    }
}
