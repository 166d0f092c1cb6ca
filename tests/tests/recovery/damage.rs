//! What may be found in the place of a record.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};

/// In the first three the file is still there, with other content. In the others something else
/// has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The first half.
    Cut,
    /// Bytes that are neither JSON nor UTF-8.
    Garbled,
    Empty,
    /// To open one waits for somebody who writes to it.
    Fifo,
    Directory,
    /// It leads to a file that never ends.
    Link,
}

impl Damage {
    pub(crate) const ALL: [Self; 6] =
        [Self::Cut, Self::Garbled, Self::Empty, Self::Fifo, Self::Directory, Self::Link];

    /// Whether it is still the file that was there before, as far as its name and its locks go.
    pub(crate) fn is_in_place(self) -> bool {
        matches!(self, Self::Cut | Self::Garbled | Self::Empty)
    }

    /// Damages the record at `path`. One that is absent is made.
    pub(crate) fn put(self, path: &Path) {
        // An earlier damage may be there still.
        let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
        let text = if is_file { fs::read(path).unwrap() } else { b"{}".to_vec() };
        if !is_file || !self.is_in_place() {
            let removed = Command::new("rm").arg("-rf").arg(path).status().unwrap();
            assert!(removed.success());
        }
        match self {
            Self::Cut => fs::write(path, &text[..text.len() / 2]).unwrap(),
            Self::Garbled => fs::write(path, [0xff, 0].repeat(text.len().div_ceil(2))).unwrap(),
            Self::Empty => drop(File::create(path).unwrap()),
            Self::Fifo => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            Self::Directory => {
                fs::create_dir(path).unwrap();
                // Not empty, so that rmdir(2) does not remove it.
                fs::write(path.join("file"), "").unwrap();
            }
            Self::Link => symlink("/dev/zero", path).unwrap(),
        }
    }
}
