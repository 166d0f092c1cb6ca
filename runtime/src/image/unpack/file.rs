//! A blob that is a file: the layer that has it and nothing else.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use sha2::{Digest as _, Sha256};

use super::{BLOCK, FILES, Source, Unpacked, occupied};
use crate::{
    error::Result,
    image::{artifact, reference::Digest},
};

/// Writes a blob as the file `name`, which has no `..`, into `FILES` in `directory`, which exists and is empty. Blocks.
///
/// # Errors
/// `ResourceExhausted` for a full disk, the source's own error.
pub(crate) fn unpack_file(source: &mut (dyn Source + Send), directory: &Path, name: &Path) -> Result<Unpacked> {
    let path = directory.join(FILES).join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let opened = File::options().create_new(true).write(true).mode(0o644).open(&path);
    let mut file = opened.with_context(|| format!("make {}", path.display()))?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(chunk) = source.next()? {
        hash.update(&chunk);
        file.write_all(&chunk).with_context(|| format!("write {}", path.display()))?;
        length += chunk.len() as u64;
    }
    let blob = Digest::of(hash.finalize());
    let entries = name.components().count() as u64;
    Ok(Unpacked {
        diff_id: artifact::diff_id(name, &blob),
        blob,
        bytes: occupied(length) + (entries - 1) * BLOCK,
        inodes: entries,
        implied: Vec::new(),
    })
}
