//! Brings one layer into a repository: it is there, or the registry has it in another repository, or
//! it is sent.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use berth_base::{
    blocking::spawn_blocking,
    error::{Error, Kind, Result},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;

use super::{
    blob::{Blob, KnownBlob, forget, note},
    compress,
    report::{LayerPush, Reports},
};
use crate::{
    compression::Compression,
    digest::Digest,
    layer_tar::LayerTar,
    registry::{PartialUpload, Target},
    unblock::unblock,
};

/// How many digests a repository is asked for, and how many repositories a layer is mounted from.
const MAX_QUESTIONS: usize = 3;
/// How often a layer is sent.
const ATTEMPTS: u64 = 5;
/// Chunks between the thread that compresses and the network.
const CHUNKS: usize = 4;

/// A layer to push.
#[derive(Debug)]
pub(super) struct LayerSource {
    pub diff_id: Digest,
    /// Of the layer on disk.
    pub directory: PathBuf,
    pub known: Vec<KnownBlob>,
}

/// Where layers go.
#[derive(Debug)]
pub(super) struct Destination {
    pub target: Target,
    /// `quay.io/a/b`
    pub repository: String,
    pub compression: Compression,
    pub reports: Reports,
}

impl Destination {
    /// Returns the blob that the repository has of the layer in the end.
    ///
    /// # Errors
    /// What the registry says; `FailedPrecondition` if the layer cannot be read.
    pub(super) async fn push_layer(&self, layer: &LayerSource) -> Result<Blob> {
        let own = layer.known.iter().filter(|known| known.repository == self.repository);
        if let Some(blob) = self.present(layer, own.map(|known| &known.blob)).await? {
            return Ok(blob);
        }
        let upload = match self.mount(layer).await {
            Mounted::Whole(blob) => return Ok(blob),
            Mounted::Upload(upload) => Some(upload),
            Mounted::Not => None,
        };
        // It may have come there by another way than one of ours.
        let others = layer.known.iter().filter(|known| known.repository != self.repository);
        if let Some(blob) = self.present(layer, others.map(|known| &known.blob)).await? {
            return Ok(blob);
        }
        let blob = self.send(layer, upload).await?;
        self.reports.layer(&layer.diff_id, LayerPush::Pushed).await;
        self.note(layer, blob.clone()).await;
        Ok(blob)
    }

    /// The first of the blobs that the repository has.
    async fn present<'a>(
        &self,
        layer: &LayerSource,
        blobs: impl Iterator<Item = &'a Blob>,
    ) -> Result<Option<Blob>> {
        let mut asked: Vec<&Blob> = Vec::new();
        for blob in blobs {
            if asked.contains(&blob) {
                continue;
            }
            if asked.len() == MAX_QUESTIONS {
                break;
            }
            if self.target.has(&blob.digest).await? {
                self.reports.layer(&layer.diff_id, LayerPush::Present).await;
                self.note(layer, blob.clone()).await;
                return Ok(Some(blob.clone()));
            }
            self.forget(layer, self.repository.clone(), blob.digest.clone()).await;
            asked.push(blob);
        }
        Ok(None)
    }

    /// Has the registry take the layer over from another of its repositories.
    async fn mount(&self, layer: &LayerSource) -> Mounted {
        let mut upload = Mounted::Not;
        for (from, known) in mounts(&self.repository, &layer.known).take(MAX_QUESTIONS) {
            match self.target.mount(&known.blob.digest, from).await {
                Ok(None) => {
                    let step = LayerPush::Mounted(from.to_owned());
                    self.reports.layer(&layer.diff_id, step).await;
                    self.note(layer, known.blob.clone()).await;
                    return Mounted::Whole(known.blob.clone());
                }
                Ok(Some(begun)) => upload = Mounted::Upload(begun),
                Err(_) => {}
            }
        }
        upload
    }

    /// Sends the layer. What breaks off goes on, or is sent again if the registry has lost it.
    async fn send(&self, layer: &LayerSource, begun: Option<PartialUpload>) -> Result<Blob> {
        let mut upload = begun;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let failure = match self.send_once(layer, upload.take()).await {
                Ok(blob) => return Ok(blob),
                Err((broken, error)) => {
                    upload = broken;
                    error
                }
            };
            if failure.kind != Kind::RegistryUnavailable || attempt == ATTEMPTS {
                return Err(failure);
            }
            tracing::info!(diff_id = %layer.diff_id, error = %failure, "an upload broke off");
            for seconds in (1..=attempt).rev() {
                self.reports.layer(&layer.diff_id, LayerPush::Retrying(seconds)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            upload = match upload {
                Some(broken) => self.target.resume(broken).await,
                None => None,
            };
        }
    }

    /// Sends the rest of an upload, or a new one. An upload that broke off comes with the error.
    async fn send_once(
        &self,
        layer: &LayerSource,
        upload: Option<PartialUpload>,
    ) -> Result<Blob, (Option<PartialUpload>, Error)> {
        let upload = match upload {
            Some(upload) => upload,
            None => self.target.begin().await.map_err(|error| (None, error))?,
        };
        let skip = upload.received;
        let (chunks, mut receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS);
        let (diff_id, directory) = (layer.diff_id.clone(), layer.directory.clone());
        let (compression, reports) = (self.compression, self.reports.clone());
        let compressing = spawn_blocking(move || {
            let total = LayerTar::length(&diff_id, &directory)?;
            let tar = LayerTar::open(&diff_id, &directory)?;
            compress::send(tar, compression, skip, &chunks, reports.sending(&diff_id, total))
        });
        let body = stream::poll_fn(move |context| receiver.poll_recv(context));
        let sent = self.target.send(&upload, body).await;
        let compressed = compressing.await.context("compress a layer");
        // A layer that cannot be read comes first: the request broke off because of that.
        let blob = match compressed.map_err(Error::from).and_then(|compressed| compressed) {
            Ok(blob) => blob,
            Err(error) => return Err((None, error)),
        };
        match (sent, blob) {
            (Ok(whole), Some(blob)) => {
                let finished = self.target.finish(&whole, &blob.digest).await;
                finished.map(|()| blob).map_err(|error| (None, error))
            }
            (Ok(_), None) => {
                let what = "the registry does not want all of a layer";
                Err((None, Error::new(Kind::RegistryUnavailable, what)))
            }
            (Err(error), _) => Err((Some(upload), error)),
        }
    }

    async fn note(&self, layer: &LayerSource, blob: Blob) {
        let known = KnownBlob { repository: self.repository.clone(), blob };
        let directory = layer.directory.clone();
        let noting = move || {
            note(&directory, known);
            Ok(())
        };
        // It never fails: what is not noted is compressed again.
        let _ = unblock(noting).await;
    }

    async fn forget(&self, layer: &LayerSource, repository: String, blob: Digest) {
        let directory = layer.directory.clone();
        let forgetting = move || {
            forget(&directory, &repository, &blob);
            Ok(())
        };
        let _ = unblock(forgetting).await;
    }
}

/// What came of the attempt to mount a layer.
enum Mounted {
    Whole(Blob),
    /// The registry wants it to be sent to here.
    Upload(PartialUpload),
    Not,
}

/// The other repositories of the same registry that a layer was in, without the host.
pub(super) fn mounts<'a>(
    repository: &'a str,
    known: &'a [KnownBlob],
) -> impl Iterator<Item = (&'a str, &'a KnownBlob)> {
    let host = repository.split('/').next().unwrap_or_default();
    known.iter().filter(move |known| known.repository != repository).filter_map(move |known| {
        let path = known.repository.strip_prefix(host)?.strip_prefix('/')?;
        Some((path, known))
    })
}

/// Shared by all pushes, so that it is bounded how many layers are compressed at once.
pub(super) type Slots = Arc<tokio::sync::Semaphore>;
