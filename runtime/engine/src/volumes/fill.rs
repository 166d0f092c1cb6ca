//! Filling volumes with what an image has in their place.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use berth_base::{error::ignore_not_found, open_in_root::open_in_root};
use berth_shim::{copy_tree::copy_tree, record as disk};
use rustix::{
    fs::{CWD, Mode, OFlags, fsync, openat, syncfs},
    io::Errno,
};

use super::FILLING;

/// A volume, and what of an image is to be copied into it.
#[derive(Clone, Debug)]
pub(crate) struct Filling {
    /// The directory that containers have mounted.
    pub data: PathBuf,
    /// Absolute, in the image.
    pub source: PathBuf,
    /// Whether other containers use the volume, and may have it mounted.
    pub is_shared: bool,
    /// Whether what is copied is to be on the disk.
    pub is_durable: bool,
}

/// Copies what the image whose files are at `root` has in the place of a volume, if that is empty: its
/// owner and its mode too, so that the image's user can write there. Nothing leads out of the image
/// (CVE-2022-23648). Blocks.
///
/// # Errors
/// The image has something else there than a directory; the file system's.
pub(crate) fn fill(root: &OwnedFd, filling: &Filling) -> anyhow::Result<()> {
    let Filling { data, source, .. } = filling;
    let relative = source.strip_prefix("/").unwrap_or(source);
    let from = match open_in_root(root, relative, OFlags::DIRECTORY) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR) => {
            bail!("cannot mount volume over existing file, file exists {}", source.display())
        }
        opened => opened.with_context(|| format!("open {} of the image", source.display()))?,
    };
    if !is_empty(data)? {
        return Ok(());
    }
    copy(&from, filling).with_context(|| format!("copy {} of the image", source.display()))
}

/// Copies aside, and puts the whole in the place of the empty directory: a volume that was half filled
/// would never be filled again. Who has that directory mounted would not see it, so that what others
/// use is filled in place; and so is what gets an owner and a mode only.
fn copy(from: &OwnedFd, filling: &Filling) -> io::Result<()> {
    let Filling { data, is_shared, is_durable, .. } = filling;
    let is_bare = is_empty(Path::new(&format!("/proc/self/fd/{}", from.as_raw_fd())))?;
    if *is_shared || is_bare {
        return copy_into(data, from, *is_durable);
    }
    let aside = data.with_file_name(FILLING);
    ignore_not_found(fs::remove_dir_all(&aside))?;
    fs::create_dir(&aside)?;
    copy_into(&aside, from, *is_durable)?;
    match fs::rename(&aside, data) {
        // Somebody has written there meanwhile, who does not want it any more.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            return fs::remove_dir_all(&aside);
        }
        renamed => renamed?,
    }
    if *is_durable { disk::sync_parent(data) } else { Ok(()) }
}

fn copy_into(to: &Path, from: &OwnedFd, is_durable: bool) -> io::Result<()> {
    let to = openat(CWD, to, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let copied = copy_tree(from, &to, &mut |_| {})?;
    match (is_durable, copied) {
        (false, _) => {}
        (true, 0) => fsync(&to)?,
        // One wait for all of the files.
        (true, _) => syncfs(&to)?,
    }
    Ok(())
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}
