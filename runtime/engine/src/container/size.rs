//! How much a container has written over its image.

use std::{collections::HashSet, mem::MaybeUninit, os::fd::AsFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat},
    path::Arg,
};

/// How many levels of directories are counted: each holds a descriptor, and a container can make
/// any number of them.
const MAX_DEPTH: usize = 128;

/// The lengths of the files below `upper`, each counted once, as dockerd adds them up. It goes down
/// by descriptors, since the container may replace a directory by a link at any moment.
pub(crate) fn written(upper: &Path) -> u64 {
    let mut seen = HashSet::new();
    walk(CWD, upper, 0, &mut seen)
}

fn walk(at: impl AsFd, name: impl Arg, depth: usize, seen: &mut HashSet<u64>) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What disappears meanwhile has no size.
    let Ok(directory) = openat(at, name, flags, Mode::empty()) else { return 0 };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut total = 0;
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        match entry.file_type() {
            _ if name == c"." || name == c".." => {}
            FileType::Directory if depth < MAX_DEPTH => {
                total += walk(&directory, name, depth + 1, seen);
            }
            FileType::Directory => {}
            _ => {
                let Ok(file) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                    continue;
                };
                // A file with several names counts once.
                if file.st_nlink == 1 || seen.insert(file.st_ino) {
                    total += u64::try_from(file.st_size).unwrap_or(0);
                }
            }
        }
    }
    total
}
