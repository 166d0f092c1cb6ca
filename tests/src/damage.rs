//! What may be found in the place of a record.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::Path,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

/// In the first three the file is still there, with other content. In the others something else
/// has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
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
    pub const ALL: [Self; 6] =
        [Self::Cut, Self::Garbled, Self::Empty, Self::Fifo, Self::Directory, Self::Link];

    /// Whether it is still the file that was there before, as far as its name and its locks go.
    pub fn is_in_place(self) -> bool {
        matches!(self, Self::Cut | Self::Garbled | Self::Empty)
    }

    /// Damages the record at `path`. One that is absent is made.
    ///
    /// # Panics
    /// The file system refuses.
    pub fn put(self, path: &Path) {
        let put = self.try_put(path);
        assert!(put.is_ok(), "{self:?} of {}: {put:?}", path.display());
    }

    fn try_put(self, path: &Path) -> io::Result<()> {
        // An earlier damage may be there still.
        let found = fs::symlink_metadata(path).ok();
        let is_file = found.as_ref().is_some_and(fs::Metadata::is_file);
        let text = if is_file { fs::read(path)? } else { b"{}".to_vec() };
        match found {
            Some(found) if found.is_dir() => fs::remove_dir_all(path)?,
            Some(_) if !is_file || !self.is_in_place() => fs::remove_file(path)?,
            _ => {}
        }
        match self {
            Self::Cut => fs::write(path, &text[..text.len() / 2]),
            Self::Garbled => fs::write(path, [0xff, 0].repeat(text.len().div_ceil(2))),
            Self::Empty => File::create(path).map(drop),
            Self::Fifo => Ok(mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?),
            Self::Directory => {
                fs::create_dir(path)?;
                // Not empty, so that rmdir(2) does not remove it.
                fs::write(path.join("file"), "")
            }
            Self::Link => symlink("/dev/zero", path),
        }
    }
}
