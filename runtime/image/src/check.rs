//! Checks that what is on disk is what was pulled: reassembles the tar of every layer and compares
//! its digest with the diff-id, and verifies the documents by their digests.

use std::{collections::HashMap, io::Read, path::Path, sync::Arc};

use berth_base::error::Result;

use crate::{
    digest::{Digest, Hasher},
    layer_key::LayerKey,
    store::{Image, Store},
    unblock::unblock,
    unpack::ReassembledTar,
};

const BUFFER: usize = 128 << 10;

/// The report on one image.
#[derive(Debug)]
pub struct CheckedImage {
    pub id: Digest,
    /// Tags, or digests if the image has no tag.
    pub names: Vec<String>,
    pub health: Health,
    /// What is wrong with the image, or was wrong before it was repaired.
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Whole,
    Damaged,
    Repaired,
}

/// The result of checking one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// There is no tar to compare: the layer is the file of an artifact, or its tar contains one
    /// name twice.
    Unverifiable,
    /// With the reason.
    Damaged(String),
}

/// The result of checking one image.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub problems: Vec<String>,
    pub damaged_layers: Vec<LayerKey>,
    documents_are_damaged: bool,
}

impl Findings {
    /// Whether the image has to be pulled again. A layer that cannot be verified is no reason to.
    pub(super) fn is_damaged(&self) -> bool {
        self.documents_are_damaged || !self.damaged_layers.is_empty()
    }
}

/// Checks images one at a time, and every layer only once, however many images contain it.
pub(super) struct Checker {
    store: Arc<Store>,
    verdicts: HashMap<LayerKey, Verdict>,
}

impl Checker {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, verdicts: HashMap::new() }
    }

    /// Reads all files of an image. `None` if the image was removed in the meantime.
    ///
    /// # Errors
    /// The check itself could not run. Damage is a finding and not an error.
    pub(super) async fn check(&mut self, image: &Image) -> Result<Option<Findings>> {
        let mut findings = Findings::default();
        // If the image is removed in the meantime, this keeps its layers until they have been read.
        // An image that is known to be damaged gets no lease. Its layers may then disappear while
        // they are read, and count as damaged, which is right.
        let lease = self.store.layers.lease(&image.layers);
        for (diff_id, key) in image.layers_by_diff_id()? {
            match self.verdict(&key, &diff_id).await? {
                Verdict::Whole => {}
                Verdict::Unverifiable => findings.problems.push(format!(
                    "layer {diff_id} cannot be verified: its tar cannot be reassembled"
                )),
                Verdict::Damaged(what) => {
                    findings.problems.push(format!("layer {diff_id}: {what}"));
                    findings.damaged_layers.push(key);
                }
            }
        }
        // A repair replaces layers, which is not possible while they are leased.
        drop(lease);
        if self.store.by_id(image.id.as_str())?.is_none() {
            return Ok(None);
        }
        let store = self.store.clone();
        let id = image.id.clone();
        if let Err(error) = unblock(move || Ok(store.check_documents(&id))).await? {
            findings.problems.push(format!("{error:#}"));
            findings.documents_are_damaged = true;
        }
        Ok(Some(findings))
    }

    async fn verdict(&mut self, key: &LayerKey, diff_id: &Digest) -> Result<Verdict> {
        // Images share layers, and reading one may take minutes.
        if let Some(verdict) = self.verdicts.get(key) {
            return Ok(verdict.clone());
        }
        let directory = self.store.layers.directory(key);
        let diff_id = diff_id.clone();
        let verdict = unblock(move || Ok(verify_layer(&directory, &diff_id))).await?;
        self.verdicts.insert(key.clone(), verdict.clone());
        Ok(verdict)
    }

    /// Notes that layers were pulled again, so that other images that contain them are whole too.
    pub(super) fn mark_repaired(&mut self, layers: Vec<LayerKey>) {
        for key in layers {
            self.verdicts.insert(key, Verdict::Whole);
        }
    }
}

/// Reads every file of the layer in `directory`. Blocks.
pub(super) fn verify_layer(directory: &Path, diff_id: &Digest) -> Verdict {
    match reassembled_digest(directory) {
        Ok(None) => Verdict::Unverifiable,
        Ok(Some(digest)) if digest == *diff_id => Verdict::Whole,
        Ok(Some(digest)) => Verdict::Damaged(format!("files are not what they were: {digest}")),
        Err(error) => Verdict::Damaged(format!("{error:#}")),
    }
}

fn reassembled_digest(directory: &Path) -> anyhow::Result<Option<Digest>> {
    let Some(mut tar) = ReassembledTar::open(directory)? else { return Ok(None) };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        match tar.read(&mut buffer)? {
            0 => return Ok(Some(hasher.finish())),
            length => hasher.update(&buffer[..length]),
        }
    }
}
