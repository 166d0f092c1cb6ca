//! A blob that is a single file, as in OCI artifacts. The layer consists of that file. Nothing is
//! parsed here, so the daemon does it itself.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::Path,
};

use anyhow::Context;
use berth_base::error::Result;

use super::contents::Unpacked;
use crate::{
    digest::{Digest, Hasher},
    layer_dir::FILES,
    source::Source,
    usage::{BLOCK, Usage, occupied},
};

/// Takes the place of a diff-id, because there is no tar. The same file under the same name is the
/// same layer. The prefix makes sure that it is not the digest of a tar.
pub(crate) fn file_diff_id(name: &Path, blob: &Digest) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(b"a file and its name\0");
    hasher.update(name.as_os_str().as_bytes());
    hasher.update([0]);
    hasher.update(blob.as_str());
    hasher.finish()
}

/// Writes a blob as the file `name` into `FILES` in `directory`, which exists and is empty. `name`
/// is a result of `relative_path`. Blocks.
///
/// # Errors
/// `ResourceExhausted` if the disk is full; the error of the source.
pub(crate) fn unpack_file(
    source: &mut dyn Source,
    directory: &Path,
    name: &Path,
) -> Result<Unpacked> {
    // Paths are safe here: the directory was empty, so they cannot contain links.
    let path = directory.join(FILES).join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let opened = File::options().create_new(true).write(true).mode(0o644).open(&path);
    let mut file = opened.with_context(|| format!("make {}", path.display()))?;
    // One thread is enough, because there is nothing to decompress.
    let mut hasher = Hasher::default();
    let mut length = 0;
    while let Some(chunk) = source.next()? {
        hasher.update(&chunk);
        file.write_all(&chunk).with_context(|| format!("write {}", path.display()))?;
        length += chunk.len() as u64;
    }
    let blob = hasher.finish();
    // The file, plus one directory for each component before it.
    let inodes = name.components().count() as u64;
    Ok(Unpacked {
        diff_id: file_diff_id(name, &blob),
        blob,
        usage: Usage { bytes: occupied(length) + (inodes - 1) * BLOCK, inodes },
        implied: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_file_under_another_name_is_another_layer() {
        let blob = Digest::sha256("content");
        assert_eq!(file_diff_id(Path::new("a"), &blob), file_diff_id(Path::new("a"), &blob));
        assert_ne!(file_diff_id(Path::new("a"), &blob), file_diff_id(Path::new("b"), &blob));
        assert_ne!(file_diff_id(Path::new("a"), &blob), blob);
    }
}
