//! Detects how a blob or an archive is compressed by its first bytes. Media types and file names
//! are wrong too often to be relied on.

/// How many bytes `Compression::detect` needs.
pub(super) const MAGIC_LENGTH: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// The compression of content that begins with `magic`. It may be shorter than `MAGIC_LENGTH`
    /// if the content is.
    pub(super) fn detect(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second form is a skippable frame; a zstd stream may begin with one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}
