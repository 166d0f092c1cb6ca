//! Detects how a blob or an archive is compressed by its first bytes. Media types and file names
//! are wrong too often to be relied on.

use std::io::{self, BufReader, Cursor, Read};

use berth_base::error::{Error, Result};

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

/// What `from` has, decompressed if it is compressed by gzip or zstd.
///
/// # Errors
/// `from` cannot be read, or `InvalidArgument` for other compressions that docker knows.
pub fn decompressed<'a>(mut from: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(MAGIC_LENGTH);
    let read = |error: io::Error| Error::from(anyhow::Error::from(error).context("read"));
    from.by_ref().take(MAGIC_LENGTH as u64).read_to_end(&mut magic).map_err(read)?;
    let compression = Compression::detect(&magic);
    let unsupported = match magic.as_slice() {
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X'] => Some("xz"),
        _ => None,
    };
    if let Some(name) = unsupported {
        return Err(Error::invalid(format!("{name} is not supported: use gzip, zstd or none")));
    }
    let whole = BufReader::new(Cursor::new(magic).chain(from));
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(whole).map_err(read)?),
        Compression::None => Box::new(whole),
    })
}
