//! Writes a layer that is from no registry: of what a container has changed, or of a tar that a user
//! sends. It goes through the same process as a layer that is pulled, so that the two are alike on
//! disk: with a tar-split, under the same name, counted and verified in the same way.
//!
//! ```text
//! upper directory --> pack ---\
//!                              chunks of 128 KiB --> `unpacker` --> commit, and a lease
//! tar of a user --------------/
//! ```
//!
//! Nothing of it is in a file before it is unpacked, and no file is synced by itself.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use anyhow::Context;
use berth_base::{
    chunks::ChunkWriter,
    error::{Error, Result},
    observe::{step_blocking, steps::write_layer},
};
use bytes::Bytes;

use crate::{
    compression::as_layer,
    digest::Digest,
    layer_dir::FILES,
    layer_key::LayerKeys,
    pack::{self, TarForm, pack},
    source::Source,
    store::{Layers, Lease},
    unpack::{self, Unpacked},
    unpacker::Unpacker,
};

/// The digest of a tar without entries: two blocks of zeros.
const NOTHING: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
const CHUNK: usize = 128 << 10;
/// Chunks that wait for the process that unpacks.
const QUEUE: usize = 4;

/// A layer that was written. It stays at least for as long as this exists.
#[derive(Debug)]
pub struct WrittenLayer {
    pub diff_id: Digest,
    /// Bytes of its tar.
    pub(super) length: u64,
    pub(super) _lease: Lease,
}

/// Makes a layer of the upper directory of an overlay, in which nothing may change meanwhile. `None`
/// if there is nothing in it. Blocks.
///
/// # Errors
/// Those of the filesystem; `ResourceExhausted` if the disk is full.
pub(super) fn write_upper(
    layers: &Arc<Layers>,
    unpacker: &Unpacker,
    upper: &OwnedFd,
) -> Result<Option<WrittenLayer>> {
    // No process has to be started for a step that has changed nothing.
    if pack::is_empty(upper)? {
        return Ok(None);
    }
    let written = write(layers, |prepared| {
        let (sender, receiver) = sync_channel(QUEUE);
        thread::scope(move |scope| {
            thread::Builder::new()
                .name("pack".into())
                .spawn_scoped(scope, move || send(upper, &sender))
                .context("start a thread")?;
            // Gone before the other thread is waited for, which ends when nobody takes its chunks.
            let mut packed = Packed { receiver, length: 0 };
            let unpacked = unpacker.unpack(&mut packed, prepared)?;
            Ok((unpacked, packed.length))
        })
    })?;
    // There may have been nothing but sockets.
    Ok(Some(written).filter(|written| written.diff_id.as_str() != NOTHING))
}

/// Makes a layer of a tar, which may be compressed. Blocks.
///
/// # Errors
/// `FailedPrecondition` for what is no tar, or has what a layer must not have; errors of `tar`.
pub(super) fn write_tar(
    layers: &Arc<Layers>,
    unpacker: &Unpacker,
    tar: &mut dyn Read,
) -> Result<WrittenLayer> {
    write(layers, |prepared| {
        let mut blob = Received { tar: as_layer(tar)?, length: 0 };
        let unpacked = unpacker.unpack(&mut blob, prepared)?;
        Ok((unpacked, blob.length))
    })
}

/// Makes a directory, has it filled, and commits it as a layer. `fill` also returns the length of
/// what it was filled with.
fn write(
    layers: &Arc<Layers>,
    fill: impl FnOnce(&Path) -> Result<(Unpacked, u64)>,
) -> Result<WrittenLayer> {
    let prepared = layers.prepare()?;
    let written = step_blocking(write_layer::UNPACK, || fill(&prepared)).and_then(|filled| {
        step_blocking(write_layer::COMMIT, || commit(layers, &prepared, filled))
    });
    if written.is_err() {
        // At once: if the disk was full, the space should be free again.
        if let Err(error) = fs::remove_dir_all(&prepared) {
            tracing::warn!(path = %prepared.display(), %error, "delete an incomplete layer");
        }
    }
    written
}

fn commit(
    layers: &Arc<Layers>,
    prepared: &Path,
    (unpacked, length): (Unpacked, u64),
) -> Result<WrittenLayer> {
    let keys = LayerKeys::of_lowest(&unpacked.diff_id);
    let key = match unpacked.implied.is_empty() {
        true => keys.diff,
        // Only the tar of a user leaves out directories, and such a layer is the only one.
        false => {
            unpack::inherit_attributes(&prepared.join(FILES), &unpacked.implied, &[])?;
            keys.chain
        }
    };
    let lease = layers.commit(prepared, &key, unpacked.usage)?;
    Ok(WrittenLayer { diff_id: unpacked.diff_id, length, _lease: lease })
}

/// Packs a directory and sends the tar, or why there is none.
fn send(upper: &OwnedFd, sender: &SyncSender<anyhow::Result<Bytes>>) {
    let mut chunks = ChunkWriter::new(CHUNK, |chunk| {
        sender.send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    });
    let packed = pack(upper, &TarForm::Layer, &mut chunks).and_then(|()| Ok(chunks.flush()?));
    if let Err(error) = packed {
        // Whoever has failed before reads no more.
        let _ = sender.send(Err(error));
    }
}

/// The tar of a directory.
struct Packed {
    receiver: Receiver<anyhow::Result<Bytes>>,
    length: u64,
}

impl Source for Packed {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let Ok(chunk) = self.receiver.recv() else { return Ok(None) };
        let chunk = chunk?;
        self.length += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

/// A tar that a user sends.
struct Received<'a> {
    tar: Box<dyn Read + 'a>,
    length: u64,
}

impl Source for Received<'_> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let mut chunk = vec![0; CHUNK];
        let length = loop {
            match self.tar.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| Error::invalid(format!("read: {error}")))?,
            }
        };
        chunk.truncate(length);
        self.length += length as u64;
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()).map(Bytes::from))
    }
}
