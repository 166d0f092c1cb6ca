//! SELinux labels of files of the host that a container is to use.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use berth_shim::record::Stage;
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, Stat, XattrFlags, fstat, getxattr, openat, setxattr, stat},
    io::Errno,
};

use crate::{
    error::{Result, Step, invalid},
    process::progress::stage as progress,
};

const XATTR: &str = "security.selinux";
/// Directories that no pod may have relabelled, because the host would no longer work.
const NEVER: [&str; 20] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt",
    "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", "/var/lib",
];
/// How deep directories may be nested: every level of the walk holds two descriptors.
const MAX_DEPTH: usize = 256;

/// Labels `origin`, which is at `source`, and everything below it. Links are labelled themselves
/// and not followed. Files on a file system without labels stay as they are.
///
/// # Errors
/// Also if it is one of the host's directories that may not be relabelled.
pub(crate) fn relabel(origin: BorrowedFd<'_>, source: &Path, label: &str) -> Result<()> {
    if let Some(path) = protected(origin).step_on("stat", source)? {
        return Err(invalid("nobody may relabel", path));
    }
    walk(origin, label, 0, &mut 0).step_on("label", source)
}

/// Which directory of `NEVER` `origin` is, if it is one. Found by device and inode: a link may have
/// led to it, and its path may lead elsewhere by now.
fn protected(origin: BorrowedFd<'_>) -> rustix::io::Result<Option<&'static str>> {
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    let own = identity(fstat(origin)?);
    Ok(NEVER.into_iter().find(|path| stat(*path).is_ok_and(|found| identity(found) == own)))
}

fn walk(
    at: BorrowedFd<'_>,
    label: &str,
    depth: usize,
    count: &mut usize,
) -> rustix::io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    // A large volume takes longer than the daemon waits for a launch without progress.
    *count += 1;
    progress(Stage::Label(*count));
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
                    // Others use the volume as well, and have deleted it meanwhile.
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
    Ok(())
}

/// Labels the file or directory `at`, if its file system has labels.
pub(crate) fn label(at: BorrowedFd<'_>, label: &str) -> rustix::io::Result<()> {
    label_one(at, label).map(drop)
}

/// Labels `at`, and returns whether its file system has labels.
fn label_one(at: BorrowedFd<'_>, label: &str) -> rustix::io::Result<bool> {
    // The descriptor is a place only (O_PATH), for which fsetxattr(2) fails with EBADF. This name
    // stands for the very same file, even if that is a link.
    let path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd()));
    let mut present = [0; 256];
    match getxattr(&path, XATTR, &mut present) {
        // It has the label already. A large volume that is mounted again is only read then.
        Ok(length)
            if present[..length].strip_suffix(&[0]).unwrap_or(&present[..length])
                == label.as_bytes() =>
        {
            Ok(true)
        }
        Err(Errno::OPNOTSUPP) => Ok(false),
        Ok(_) | Err(_) => {
            setxattr(&path, XATTR, label.as_bytes(), XattrFlags::empty()).map(|()| true)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_nobody_may_relabel_is_known_by_itself_and_not_by_its_path() {
        let dir = std::env::temp_dir().join(format!("berth-selinux-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let link = dir.join("link");
        symlink("/etc", &link).unwrap();
        let (own, led) = (File::open(&dir).unwrap(), File::open(&link).unwrap());
        // A path that is another one by the time somebody looks.
        fs::remove_file(&link).unwrap();
        symlink(&dir, &link).unwrap();
        assert_eq!(protected(led.as_fd()).unwrap(), Some("/etc"));
        assert_eq!(protected(own.as_fd()).unwrap(), None);
        for path in NEVER.into_iter().filter(|path| fs::exists(path).unwrap_or(false)) {
            assert!(protected(File::open(path).unwrap().as_fd()).unwrap().is_some(), "{path}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
