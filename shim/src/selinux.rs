//! SELinux labels of files that are on the host and shown in the container.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use berth_shim::record::Stage;
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, openat, setxattr},
    io::Errno,
};

use crate::{
    error::{Result, Step, failure},
    run,
};

const XATTR: &str = "security.selinux";
/// What nobody may relabel: the host would not work any more.
const NEVER: [&str; 20] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
    "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", "/var/lib",
];
/// Every level of the walk holds a descriptor.
const MAX_DEPTH: usize = 256;

/// Labels `origin`, which is at `source`, and everything below it. Links are labelled and not followed; what is on a filesystem
/// without labels stays as it is.
pub(crate) fn relabel(origin: BorrowedFd<'_>, source: &Path, label: &str) -> Result<()> {
    let real = source.canonicalize().step_on("resolve", source)?;
    if NEVER.iter().any(|path| real == Path::new(path)) {
        return Err(failure("nobody may relabel", real));
    }
    walk(origin, label, 0, &mut 0).step_on("label", source)
}

fn walk(at: BorrowedFd<'_>, label: &str, depth: usize, count: &mut usize) -> rustix::io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    *count += 1;
    run::stage(Stage::Label(*count));
    if !label_one(at, label)? {
        return Ok(());
    }
    if FileType::from_raw_mode(fstat(at)?.st_mode).is_dir() {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        for entry in Dir::read_from(openat(at, ".", flags, Mode::empty())?)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(at, name, flags, Mode::empty()) {
                    Ok(child) => walk(child.as_fd(), label, depth + 1, count)?,
                    // Others use the volume too.
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
    Ok(())
}

/// Labels what `at` is, where its filesystem has labels.
pub(crate) fn label(at: BorrowedFd<'_>, label: &str) -> rustix::io::Result<()> {
    label_one(at, label).map(drop)
}

/// Whether the filesystem has labels.
fn label_one(at: BorrowedFd<'_>, label: &str) -> rustix::io::Result<bool> {
    // The place itself, also where it is a link.
    let path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd()));
    let mut present = [0; 256];
    match getxattr(&path, XATTR, &mut present) {
        // Left alone: a large volume that is mounted again is read, and not written.
        Ok(length) if present[..length].strip_suffix(&[0]).unwrap_or(&present[..length]) == label.as_bytes() => {
            Ok(true)
        }
        Err(Errno::OPNOTSUPP) => Ok(false),
        Ok(_) | Err(_) => setxattr(&path, XATTR, label.as_bytes(), XattrFlags::empty()).map(|()| true),
    }
}
