//! The files of a log: the one that the shim writes to, and those that were full before it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// A file of a log that is being read.
#[derive(Debug)]
pub(super) struct LogFile {
    pub file: File,
    /// Device and inode, by which a file is known again after it was renamed.
    pub identity: (u64, u64),
    /// Bytes at the time of opening.
    pub size: u64,
    /// Where to read next.
    pub position: u64,
}

impl LogFile {
    /// `None` if there is no such file.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let found = file.metadata()?;
        let identity = (found.dev(), found.ino());
        Ok(Some(Self { file, identity, size: found.len(), position: 0 }))
    }
}

/// Opens the files of the log at `path` that are newer than the one with the identity `known`,
/// oldest first. Without `known`, or if that is gone, all of them.
///
/// They are opened from the newest to the oldest. If the log is rotated meanwhile, a file is met
/// again under its new name and left out there, while in the other order one would be missed.
///
/// # Errors
/// Errors of the filesystem.
pub(super) fn newer_than(path: &Path, known: Option<(u64, u64)>) -> io::Result<Vec<LogFile>> {
    let mut files: Vec<LogFile> = Vec::new();
    let mut paths = rotated(path)?;
    paths.insert(0, path.to_owned());
    for path in paths {
        let Some(file) = LogFile::open(&path)? else { continue };
        if Some(file.identity) == known {
            break;
        }
        if files.iter().all(|other| other.identity != file.identity) {
            files.push(file);
        }
    }
    files.reverse();
    Ok(files)
}

/// Whether the log is still written to the file with the identity `known`.
pub(super) fn is_current(path: &Path, known: Option<(u64, u64)>) -> bool {
    // Between the two steps of a rotation there is no file, and nothing new either.
    fs::metadata(path).map_or(true, |found| Some((found.dev(), found.ino())) == known)
}

/// The paths of the rotated files `path.1`, `path.2` ..., newest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(number) = number(name, &entry.file_name()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// 3 for `name.3`.
fn number(name: &OsStr, entry: &OsStr) -> Option<u32> {
    let suffix = entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b".")?;
    std::str::from_utf8(suffix).ok()?.parse().ok()
}
