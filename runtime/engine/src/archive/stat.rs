//! What the header `X-Docker-Container-Path-Stat` tells of a path: base64 of
//! `{"name":"hosts","size":174,"mode":420,"mtime":"2025-05-01T04:00:00Z","linkTarget":""}`.

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD};
use berth_base::error::Result;
use rustix::fs::{FileType, Stat, fstat};
use serde::Serialize;

use super::{
    ContainerFiles,
    path::{ContainerPath, evaluate},
};
use crate::time::rfc3339_nano;

/// A path of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStat {
    pub name: String,
    /// In bytes.
    pub size: i64,
    /// Go's `os.FileMode`.
    pub mode: u32,
    pub mtime: String,
    /// Where a link leads to when all links are followed, within the container. Else empty.
    pub link_target: String,
}

impl PathStat {
    /// The value of the header.
    pub fn header(&self) -> String {
        // It has only text and numbers.
        STANDARD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

impl ContainerFiles<'_> {
    /// Describes `path`. A link at its end is not followed, unless the path ends with a slash.
    ///
    /// # Errors
    /// `NotFound` in the words of dockerd; errors of the filesystem.
    pub fn stat(&self, path: &str) -> Result<PathStat> {
        let fault = |errno| self.unreachable(path, errno);
        let place = ContainerPath::new(path);
        let file = place.open(self.root).map_err(fault)?;
        let found = fstat(&file).map_err(fault)?;
        let link_target = match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => evaluate(self.root, &place.relative).map_err(fault)?,
            _ => PathBuf::new(),
        };
        Ok(PathStat {
            name: place.base().to_string_lossy().into_owned(),
            size: found.st_size,
            mode: go_mode(found.st_mode),
            mtime: rfc3339_nano(modified(&found)),
            link_target: link_target.to_string_lossy().into_owned(),
        })
    }
}

/// The time of modification, in nanoseconds since the epoch.
fn modified(found: &Stat) -> i64 {
    let seconds = found.st_mtime.saturating_mul(1_000_000_000);
    seconds.saturating_add(found.st_mtime_nsec as i64)
}

/// The bits of Go's `os.FileMode` for those of `st_mode`.
pub(super) fn go_mode(mode: u32) -> u32 {
    const SPECIAL: [(u32, u32); 3] = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => 0,
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::Unknown => 1 << 19,
    };
    let special = SPECIAL.iter().filter(|(bit, _)| mode & bit != 0);
    special.fold(kind | mode & 0o777, |all, (_, bit)| all | bit)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::AsFd, unix::fs::symlink},
    };

    use super::*;

    #[test]
    fn modes_are_gos() {
        for (mode, expected) in [
            (0o100_644, 0o644),
            (0o104_755, 0o755 | 1 << 23),
            (0o102_755, 0o755 | 1 << 22),
            (0o041_777, 0o777 | 1 << 31 | 1 << 20),
            (0o120_777, 0o777 | 1 << 27),
            (0o010_600, 0o600 | 1 << 25),
            (0o020_666, 0o666 | 1 << 26 | 1 << 21),
            (0o060_660, 0o660 | 1 << 26),
            (0o140_700, 0o700 | 1 << 24),
        ] {
            assert_eq!(go_mode(mode), expected, "{mode:o}");
        }
    }

    #[test]
    fn a_path_is_described_without_leaving_the_container() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/hosts"), "0123").unwrap();
        symlink("/etc/hosts", root.path().join("link")).unwrap();
        symlink("../../../../etc", root.path().join("up")).unwrap();
        let directory = fs::File::open(root.path()).unwrap();
        let files = ContainerFiles::new(directory.as_fd(), "web");
        let stat = |path: &str| files.stat(path).map_err(|error| error.message);
        let hosts = stat("/etc/hosts").unwrap();
        assert_eq!((hosts.name.as_str(), hosts.size, hosts.mode >> 20), ("hosts", 4, 0));
        let link = stat("link").unwrap();
        assert_eq!((link.link_target.as_str(), link.mode >> 20), ("/etc/hosts", 1 << 7));
        let up = stat("/up/").unwrap();
        assert_eq!((up.name.as_str(), up.mode >> 31, up.link_target.as_str()), ("up", 1, ""));
        assert_eq!(stat("/").unwrap().name, "/");
        assert_eq!(stat("/etc/.").unwrap().name, ".");
        let message = "Could not find the file /none in container web";
        assert_eq!(stat("/none"), Err(message.to_owned()));
        assert_eq!(stat("etc/hosts/"), Err("lstat /etc/hosts/: not a directory".to_owned()));
    }

    #[test]
    fn the_header_is_json_in_base64() {
        let stat = PathStat {
            name: "hosts".to_owned(),
            size: 174,
            mode: 420,
            mtime: "2025-05-01T04:00:00Z".to_owned(),
            link_target: String::new(),
        };
        let json = STANDARD.decode(stat.header()).unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"name":"hosts","size":174,"mode":420,"mtime":"2025-05-01T04:00:00Z","linkTarget":""}"#
        );
    }
}
