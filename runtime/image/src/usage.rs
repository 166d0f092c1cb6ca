//! Disk usage of layers. It is counted while they are unpacked, so that reporting it needs no walk
//! through the files.

use std::iter::Sum;

use serde::{Deserialize, Serialize};

/// The unit in which files occupy disk space. Close enough to what du(1) shows on common
/// filesystems.
pub(super) const BLOCK: u64 = 4096;

/// Bytes on disk and inodes, as CRI's ImageFsInfo reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |total, one| Self {
            bytes: total.bytes + one.bytes,
            inodes: total.inodes + one.inodes,
        })
    }
}

/// The bytes on disk of a file of `length` bytes without holes.
pub(super) fn occupied(length: u64) -> u64 {
    length.div_ceil(BLOCK) * BLOCK
}
