//! Whether what is on disk is what was pulled: the tar of every layer is made again, and its digest compared.

use std::{io::Read, path::Path};

use sha2::{Digest as _, Sha256};

use super::{reference::Digest, unpack::Rebuilt};

const BUFFER: usize = 128 << 10;

/// Of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// It is the file of an artifact, or its tar has one name twice: there is nothing to compare.
    Unknown,
    /// What is wrong.
    Damaged(String),
}

/// Reads every file of the layer in `directory`. Blocks.
pub(super) fn verify(directory: &Path, diff_id: &Digest) -> Verdict {
    match digest(directory) {
        Ok(None) => Verdict::Unknown,
        Ok(Some(digest)) if digest == *diff_id => Verdict::Whole,
        Ok(Some(digest)) => Verdict::Damaged(format!("files are not what they were: {digest}")),
        Err(error) => Verdict::Damaged(format!("{error:#}")),
    }
}

fn digest(directory: &Path) -> anyhow::Result<Option<Digest>> {
    let Some(mut tar) = Rebuilt::open(directory)? else { return Ok(None) };
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    loop {
        match tar.read(&mut buffer)? {
            0 => return Ok(Some(Digest::of(hash.finalize()))),
            length => hash.update(&buffer[..length]),
        }
    }
}
