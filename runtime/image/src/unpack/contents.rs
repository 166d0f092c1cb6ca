//! What was made of a blob.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, usage::Usage};

/// The result of unpacking a layer.
///
/// Paths are `OsString`, because names in a tar need not be UTF-8, and serde would refuse those in
/// a `PathBuf`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    pub files: Extracted,
}

/// What was written below the layer's directory, and what remains to be done there.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Extracted {
    pub usage: Usage,
    /// Directories that the tar has no entries for. Their attributes have to be those of the layers
    /// below.
    pub implied: Vec<OsString>,
    /// Directories that hide what the layers below have in them.
    pub opaque: Vec<OsString>,
    /// Device nodes. In the place of each is an empty file with its attributes.
    pub devices: Vec<Device>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub path: OsString,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    Block,
    Character,
}

/// A layer that was unpacked. The caller has to compare the digests with those it expects.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the blob.
    pub blob: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    pub usage: Usage,
    /// Directories whose attributes have to be those of the layers below.
    pub implied: Vec<OsString>,
}

impl Unpacked {
    pub(crate) fn new(blob: Digest, contents: Contents) -> Self {
        let Contents { diff_id, files: Extracted { usage, implied, .. } } = contents;
        Self { blob, diff_id, usage, implied }
    }
}
