//! Limits how much a layer may expand. A small blob must not become huge, neither by decompression
//! nor by holes in sparse files (CVE-2023-25153, CVE-2025-58183).

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

/// A layer that expands by more than this factor is a bomb, if it is also larger than `BOMB_FROM`.
/// deflate reaches at most 1032, and only with nothing but equal bytes.
const BOMB_RATIO: u64 = 1000;
/// Smaller layers may expand by any factor. They do not cost more than an ordinary large layer.
const BOMB_FROM: u64 = 1 << 30;

/// Counts the bytes of one layer. Both threads use it, with relaxed ordering: it does no harm if a
/// thread sees a count that is one buffer old.
#[derive(Debug, Default)]
pub(crate) struct Expansion {
    received: AtomicU64,
    /// Bytes of the tar, plus the lengths of holes in sparse files.
    expanded: AtomicU64,
}

impl Expansion {
    pub(crate) fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that the layer expands to.
    ///
    /// # Errors
    /// The layer has expanded too much.
    pub(crate) fn grow(&self, bytes: u64) -> io::Result<()> {
        let expanded = self.expanded.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let received = self.received.load(Ordering::Relaxed);
        match is_bomb(received, expanded) {
            true => Err(io::Error::other(format!("{received} bytes became more than {expanded}"))),
            false => Ok(()),
        }
    }
}

fn is_bomb(received: u64, expanded: u64) -> bool {
    expanded > BOMB_FROM && expanded / BOMB_RATIO > received
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_large_and_was_small() {
        for (received, expanded, expected) in [
            (74, 1 << 30, false),
            (74, (1 << 30) + 1, true),
            (3 << 20, 2 << 30, false),
            (3 << 20, (3 << 30) + (200 << 20), true),
            (1 << 30, 60 << 30, false),
        ] {
            assert_eq!(is_bomb(received, expanded), expected, "{received} {expanded}");
        }
    }
}
