//! The interface between unpacking and the origin of a blob.

use berth_base::error::Result;
use bytes::Bytes;

/// Supplies the bytes of a blob in order. Not `std::io::Read`, because the kind of an error
/// matters: what a failed pull leaves for the next attempt depends on it.
pub(crate) trait Source {
    /// The next bytes; `None` at the end. Blocks.
    fn next(&mut self) -> Result<Option<Bytes>>;
}
