//! SHA-256 digests, by which registries, manifests and this store refer to content.

use std::fmt;

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "sha256:";
pub(crate) const HEX_DIGITS: usize = 64;

/// `sha256:` and 64 lower-case hexadecimal digits.
///
/// A parsed digest is safe to use as a file name, because it contains no slash and no dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl Digest {
    /// # Errors
    /// `InvalidArgument` for another algorithm, or if there are not 64 lower-case hexadecimal
    /// digits.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(hex) = text.strip_prefix(PREFIX) else {
            return Err(Error::invalid(format!(
                "{text:?} is not a digest that berth supports: it must begin with {PREFIX}"
            )));
        };
        // Upper case is refused, because two spellings would be two names for the same content.
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != HEX_DIGITS || !hex.bytes().all(is_hex) {
            return Err(Error::invalid(format!(
                "{text:?} is not a digest: sha256 has {HEX_DIGITS} lower-case hexadecimal digits"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The digest of `bytes`.
    pub fn sha256(bytes: impl AsRef<[u8]>) -> Self {
        Self::from_hash(Sha256::digest(bytes))
    }

    fn from_hash(hash: impl AsRef<[u8]>) -> Self {
        let mut text = String::with_capacity(PREFIX.len() + HEX_DIGITS);
        text.push_str(PREFIX);
        for byte in hash.as_ref() {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without the algorithm. Files are named after these.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Computes the digest of content that arrives in chunks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_hash(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_has_one_digest_whether_it_is_hashed_at_once_or_in_chunks() {
        let whole = Digest::sha256("abc");
        assert_eq!(
            whole.as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let mut hasher = Hasher::default();
        hasher.update("a");
        hasher.update("bc");
        assert_eq!(hasher.finish(), whole);
        assert_eq!(Digest::parse(whole.as_str()).unwrap(), whole);
    }

    #[test]
    fn other_spellings_are_no_digests() {
        let upper = format!("sha256:{}", "A".repeat(64));
        let long = format!("sha256:{}", "a".repeat(65));
        for text in ["", "sha256:", "sha256:ab", "sha512:ab", &upper, &long] {
            assert!(Digest::parse(text).is_err(), "{text:?}");
        }
    }
}
