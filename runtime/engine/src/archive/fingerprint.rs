//! A hash of files, by which a build knows whether they are those of an earlier one.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use berth_base::open_in_root::open_in_root;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat, readlinkat};
use sha2::{Digest, Sha256};

use super::{
    attributes::attributes,
    copy::{names, reopen},
    path::ContainerPath,
};

/// Bytes that are hashed at once.
const CHUNK: usize = 64 << 10;

/// `file:HASH` of a file, or `dir:HASH` of a directory with all that is in it: names, modes, owners,
/// contents, but no times, which differ for each who has checked the same files out. A link at the end
/// of the path is followed.
///
/// # Errors
/// Those of the filesystem.
pub fn fingerprint(root: BorrowedFd<'_>, path: &str) -> anyhow::Result<String> {
    let file = open_in_root(root, &ContainerPath::new(path).relative, OFlags::PATH)?;
    let mut hasher = Sha256::new();
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::Directory {
        // By the name under which it is asked for, as a directory is below.
        let name = ContainerPath::new(path).base().to_owned();
        add(&mut hasher, &file, Path::new(&name))?;
        return Ok(format!("file:{}", hex(hasher)));
    }
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
        let directory = open_in_root(&file, &path, flags).context("open directory")?;
        for name in names(&directory)? {
            let path = path.join(&name);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let entry = openat(&directory, &name, flags, Mode::empty()).context("open")?;
            add(&mut hasher, &entry, &path)?;
            if FileType::from_raw_mode(fstat(&entry)?.st_mode) == FileType::Directory {
                left.push(path);
            }
        }
    }
    Ok(format!("dir:{}", hex(hasher)))
}

/// `sha256:HASH` of the content of a file.
///
/// # Errors
/// Those of the filesystem.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).context("open")?;
    content(&mut hasher, &mut file).context("read")?;
    Ok(format!("sha256:{}", hex(hasher)))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds a file. Each field has its length in front, so that none can pass for two.
fn add(hasher: &mut Sha256, file: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let stat = fstat(file)?;
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(path.as_os_str().as_bytes());
    for number in [u64::from(stat.st_mode), u64::from(stat.st_uid), u64::from(stat.st_gid)] {
        field(&number.to_le_bytes());
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            field(readlinkat(file, "", Vec::new()).context("read link")?.as_bytes());
        }
        FileType::RegularFile => {
            let mut opened = File::from(reopen(file)?);
            for (name, value) in attributes(&opened) {
                field(name.as_bytes());
                field(&value);
            }
            field(&stat.st_size.to_le_bytes());
            content(hasher, &mut opened).context("read")?;
        }
        FileType::CharacterDevice | FileType::BlockDevice => field(&stat.st_rdev.to_le_bytes()),
        _ => {}
    }
    Ok(())
}

fn content(hasher: &mut Sha256, file: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
