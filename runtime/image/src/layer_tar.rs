//! The tar of a layer, bit for bit as it was, from its files and its tar-split. It is verified while it
//! is read, so that a damaged layer is not passed on to other nodes.

use std::{
    io::{self, Read},
    path::Path,
};

use berth_base::error::{Error, Kind, Result};

use crate::{
    digest::{Digest, Hasher},
    unpack::ReassembledTar,
};

/// A tar that is being read.
pub(super) struct LayerTar {
    diff_id: Digest,
    tar: ReassembledTar,
    hasher: Hasher,
    /// Whether reading has failed: whoever copies the tar gets errors in reading and in writing as
    /// one.
    failed: bool,
}

impl LayerTar {
    /// Opens the layer in `directory`.
    ///
    /// # Errors
    /// `FailedPrecondition` if it has no tar-split.
    pub(super) fn open(diff_id: &Digest, directory: &Path) -> Result<Self> {
        let tar = reassembled(diff_id, directory)?;
        Ok(Self { diff_id: diff_id.clone(), tar, hasher: Hasher::default(), failed: false })
    }

    /// The length of the tar of the layer in `directory`. The tar-split alone gives it, and none of
    /// the files is read.
    ///
    /// # Errors
    /// `FailedPrecondition` if there is no tar-split, or if it is damaged.
    pub(super) fn length(diff_id: &Digest, directory: &Path) -> Result<u64> {
        let length = reassembled(diff_id, directory)?.length();
        length.map_err(|error| unusable(diff_id, &format!("is damaged: {error}")))
    }

    /// The result of copying the whole tar, once that has been verified.
    ///
    /// # Errors
    /// That of `copied`; `FailedPrecondition` if the layer is damaged.
    pub(super) fn finish<T>(self, copied: anyhow::Result<T>) -> Result<T> {
        let is_whole = !self.failed && (copied.is_err() || self.hasher.finish() == self.diff_id);
        match is_whole {
            true => Ok(copied?),
            false => Err(unusable(
                &self.diff_id,
                "is damaged: `berthd images check --repair` pulls it again",
            )),
        }
    }
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.tar.read(buffer).inspect_err(|_| self.failed = true)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

fn unusable(diff_id: &Digest, why: &str) -> Error {
    Error::new(Kind::FailedPrecondition, format!("layer {diff_id} {why}"))
}

fn reassembled(diff_id: &Digest, directory: &Path) -> Result<ReassembledTar> {
    ReassembledTar::open(directory)?.ok_or_else(|| {
        let why = "is of an artifact, or has one name twice: its tar cannot be reassembled";
        unusable(diff_id, why)
    })
}
