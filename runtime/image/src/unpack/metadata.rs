//! The owner, mode, time and extended attributes of entries.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use anyhow::Context;
use rustix::{
    fs::{
        AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
        fchmod, fchown, fsetxattr, futimens, lsetxattr, openat, utimensat,
    },
    io::Errno,
    process::fchdir,
};
use tar::Entry;

use super::{
    refuse::{damaged, refuse},
    sparse::SparseHeaders,
};

/// The metadata of an entry.
pub(super) struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    pub modified: Timespec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Metadata {
    /// # Errors
    /// `FailedPrecondition` if a field is malformed or out of range.
    pub(super) fn read<R: Read>(entry: &mut Entry<'_, R>) -> anyhow::Result<Self> {
        let xattrs = xattrs(entry)?;
        let header = entry.header();
        let mode = header.mode().map_err(|error| damaged("mode", &error))?;
        let seconds = header.mtime().map_err(|error| damaged("mtime", &error))?;
        Ok(Self {
            uid: Uid::from_raw(id(header.uid().map_err(|error| damaged("uid", &error))?)?),
            gid: Gid::from_raw(id(header.gid().map_err(|error| damaged("gid", &error))?)?),
            // Only permission bits. The type of the file comes from the type of the entry.
            mode: Mode::from_raw_mode(mode & 0o7777),
            modified: Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 },
            xattrs,
        })
    }

    fn times(&self) -> Timestamps {
        Timestamps { last_access: self.modified, last_modification: self.modified }
    }

    /// Sets the metadata of a directory, except for its times; see `LayerWriter::times`.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn apply_to_directory(&self, directory: &OwnedFd) -> anyhow::Result<()> {
        fchown(directory, Some(self.uid), Some(self.gid)).context("chown")?;
        fchmod(directory, self.mode).context("chmod")?;
        self.set_xattrs(directory)
    }

    /// Sets the metadata of a regular file. Its content must be complete.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn apply_to_file(&self, file: &File) -> anyhow::Result<()> {
        // The file was created by root and mostly stays root's, which saves the system call.
        if !self.uid.is_root() || !self.gid.is_root() {
            fchown(file, Some(self.uid), Some(self.gid)).context("chown")?;
        }
        // After chown(2), which clears the set-user-ID bit and removes security.capability.
        fchmod(file, self.mode).context("chmod")?;
        self.set_xattrs(file)?;
        futimens(file, &self.times()).context("set times")
    }

    /// Sets the metadata of a FIFO, or of the file in the place of a device.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn apply_to_node(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        self.chown_at(parent, name)?;
        // chmod follows links, but `name` has just been created and is none.
        chmodat(parent, name, self.mode, AtFlags::empty()).context("chmod")?;
        self.finish_at(parent, name)
    }

    /// Sets the metadata of a symbolic link. Links have no mode.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn apply_to_symlink(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        self.chown_at(parent, name)?;
        self.finish_at(parent, name)
    }

    fn chown_at(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        chownat(parent, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)
            .context("chown")
    }

    fn finish_at(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        if !self.xattrs.is_empty() {
            self.set_xattrs_at(parent, name)?;
        }
        utimensat(parent, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW).context("set times")
    }

    /// Links cannot be opened for fsetxattr(2), FIFOs should not be, and setxattrat(2) needs Linux
    /// 6.13. So the parent is the working directory for a moment, which no other code relies on.
    fn set_xattrs_at(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let before = openat(CWD, ".", flags, Mode::empty()).context("open .")?;
        fchdir(parent).context("fchdir")?;
        let set = self.xattrs.iter().try_for_each(|(key, value)| {
            tolerate(lsetxattr(name, key, value, XattrFlags::empty()), key)
        });
        fchdir(&before).context("fchdir")?;
        set
    }

    fn set_xattrs(&self, file: impl AsFd) -> anyhow::Result<()> {
        for (name, value) in &self.xattrs {
            tolerate(fsetxattr(&file, name, value, XattrFlags::empty()), name)?;
        }
        Ok(())
    }
}

/// Checks a user or group id. To chown(2), -1 means "do not change", which would leave the file to
/// root.
fn id(id: u64) -> anyhow::Result<u32> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| refuse(format!("owner {id} is out of range")))
}

/// The extended attributes in PAX headers, in the form of GNU tar and bsdtar. Leaves out those that
/// control overlayfs: with them a layer could redirect its directories into those of other layers.
fn xattrs<R: Read>(entry: &mut Entry<'_, R>) -> anyhow::Result<Vec<(OsString, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions().map_err(|error| damaged("PAX header", &error))?
    else {
        return Ok(Vec::new());
    };
    let mut xattrs = Vec::new();
    for extension in extensions {
        let extension = extension.map_err(|error| damaged("PAX header", &error))?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        if !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") {
            xattrs.push((OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(xattrs)
}

/// The sparse headers of an entry, if it has any.
///
/// # Errors
/// `FailedPrecondition` if the headers are malformed.
pub(super) fn sparse_headers<R: Read>(
    entry: &mut Entry<'_, R>,
) -> anyhow::Result<Option<SparseHeaders>> {
    let Some(extensions) = entry.pax_extensions().map_err(|error| damaged("PAX header", &error))?
    else {
        return Ok(None);
    };
    let extensions = extensions
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| damaged("PAX header", &error))?;
    SparseHeaders::parse(
        extensions.iter().map(|extension| (extension.key_bytes(), extension.value_bytes())),
    )
}

/// Ignores that an attribute cannot be set, which is no reason to refuse an image: the filesystem
/// does not support it, or the error is EPERM, as for `user` attributes of links and FIFOs, and for
/// attributes of security modules (xattr(7)).
fn tolerate(result: rustix::io::Result<()>, name: &OsStr) -> anyhow::Result<()> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        result => {
            result.with_context(|| format!("set extended attribute {}", name.to_string_lossy()))
        }
    }
}
