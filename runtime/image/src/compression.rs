//! Detects how a blob or an archive is compressed by its first bytes. Media types and file names
//! are wrong too often to be relied on.

use std::io::{self, BufReader, Cursor, Read};

use berth_base::error::{Error, Result};
use lzma_rust2::XzReader;
use serde::{Deserialize, Serialize};

/// How many bytes `Compression::detect` needs.
pub(super) const MAGIC_LENGTH: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// How much memory the dictionary of an xz stream may take, in KiB: `xz -9` takes 65 MiB, and a header
/// of 24 bytes can ask for 4 GiB.
const XZ_MEMORY: u32 = 80 << 10;

/// What `from` has, decompressed if it is compressed as no layer is: by bzip2 or xz.
///
/// # Errors
/// As `decompressed`.
pub(super) fn as_layer<'a>(mut from: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let magic = magic(&mut from)?;
    match Archived::detect(&magic) {
        Some(_) => decompressed(Cursor::new(magic).chain(from)),
        None => Ok(Box::new(Cursor::new(magic).chain(from))),
    }
}

/// A compression that no layer has, but archives of docker's clients may.
enum Archived {
    Bzip2,
    Xz,
}

impl Archived {
    fn detect(magic: &[u8]) -> Option<Self> {
        match magic {
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', ..] => Some(Self::Xz),
            _ => None,
        }
    }
}

fn magic(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(MAGIC_LENGTH);
    from.by_ref().take(MAGIC_LENGTH as u64).read_to_end(&mut magic).map_err(unreadable)?;
    Ok(magic)
}

fn unreadable(error: io::Error) -> Error {
    anyhow::Error::from(error).context("read").into()
}

/// What `from` has, decompressed if it is compressed by one of docker's compressions: gzip, zstd,
/// bzip2 or xz.
///
/// # Errors
/// `from` cannot be read. Reading from it fails with `OutOfMemory` if that would take too much.
pub fn decompressed<'a>(mut from: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let magic = magic(&mut from)?;
    let (archived, compression) = (Archived::detect(&magic), Compression::detect(&magic));
    let whole = BufReader::new(Cursor::new(magic).chain(from));
    Ok(match (archived, compression) {
        (Some(Archived::Bzip2), _) => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
        (Some(Archived::Xz), _) => Box::new(XzReader::new_mem_limit(whole, true, XZ_MEMORY)),
        (None, Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        (None, Compression::Zstd) => {
            Box::new(zstd::Decoder::with_buffer(whole).map_err(unreadable)?)
        }
        (None, Compression::None) => Box::new(whole),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompressed(bytes).unwrap().read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn every_compression_is_known_by_its_content() {
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(b"content").unwrap();
        let bzip2 = bzip2.finish().unwrap();
        let zstd = zstd::encode_all(&b"content"[..], 0).unwrap();
        for bytes in [&b"content"[..], &zstd, &bzip2] {
            assert_eq!(read(bytes).unwrap(), b"content");
        }
        // They may be concatenated.
        assert_eq!(read(&[bzip2.as_slice(), &bzip2].concat()).unwrap(), b"contentcontent");
        assert!(read(&bzip2[..20]).is_err());
    }

    #[test]
    fn a_header_cannot_take_all_memory() {
        let crc = |bytes: &[u8]| {
            let mut crc = flate2::Crc::new();
            crc.update(bytes);
            crc.sum().to_le_bytes()
        };
        // A stream with checksums of 32 bits, and a block with a dictionary of 4 GiB.
        let (flags, block) = ([0, 1], [2, 0, 0x21, 1, 40, 0, 0, 0]);
        let stream = [&b"\xfd7zXZ\0"[..], &flags, &crc(&flags), &block, &crc(&block)].concat();
        assert_eq!(read(&stream).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
