//! What a pull or a load tells somebody who watches it: how far each layer has come.

use tokio::sync::mpsc;

use crate::digest::Digest;

/// How many reports wait for one who watches. What is more is lost: a pull waits for nobody.
const WAITING: usize = 1024;
/// The bytes between two reports about a download.
const GRAIN: u64 = 512 << 10;

/// A layer of a pull, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The digest of its blob, and of a layer of an archive its diff-id.
    pub blob: Digest,
    pub step: LayerStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerStep {
    /// It is on disk already, and nothing follows.
    Present,
    /// It is to be fetched.
    Waiting,
    /// Or read from an archive. In bytes.
    Downloading {
        received: u64,
        size: u64,
    },
    Downloaded,
    /// It is unpacked and verified.
    Complete,
}

/// The end of a pull's reports that the pull has. By default nobody watches.
#[derive(Clone, Debug, Default)]
pub struct Watched(Option<mpsc::Sender<LayerProgress>>);

/// For a pull that is to be watched, and the reports of it. They end with the pull, or at once if
/// the pull joins one that is under way.
pub fn watch() -> (Watched, mpsc::Receiver<LayerProgress>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Watched(Some(sender)), receiver)
}

impl Watched {
    pub(crate) fn report(&self, blob: &Digest, step: LayerStep) {
        if let Some(sender) = &self.0 {
            // It fails if the one who watches is gone, or too slow.
            let _ = sender.try_send(LayerProgress { blob: blob.clone(), step });
        }
    }

    /// Reports that `bytes` more than the `before` ones have come, if it is worth it.
    pub(crate) fn downloaded(&self, blob: &Digest, size: u64, before: u64, bytes: u64) {
        let received = before + bytes;
        if before / GRAIN != received / GRAIN {
            self.report(blob, LayerStep::Downloading { received, size });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_reported_by_grains_and_waits_for_nobody() {
        let (watched, mut reports) = watch();
        let blob = Digest::sha256(b"");
        for before in 0..10 * WAITING as u64 {
            watched.downloaded(&blob, u64::MAX, before * GRAIN / 4, GRAIN / 4);
        }
        let first = LayerStep::Downloading { received: GRAIN, size: u64::MAX };
        assert_eq!(reports.try_recv().unwrap(), LayerProgress { blob, step: first });
        assert_eq!(reports.len(), WAITING - 1);
        Watched::default().report(&Digest::sha256(b""), LayerStep::Waiting);
    }
}
