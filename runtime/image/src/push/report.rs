//! What a push tells whoever asked for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::digest::Digest;

/// How many reports wait for the one who reads them. Then the push waits, too.
const WAITING: usize = 100;
/// The bytes between two reports about a layer that is sent.
const GRAIN: u64 = 512 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushReport {
    Layer {
        diff_id: Digest,
        step: LayerPush,
    },
    /// A tag is in the registry, with a manifest of this digest and this many bytes.
    Tag {
        tag: String,
        digest: Digest,
        size: usize,
    },
}

/// How far a layer has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerPush {
    Preparing,
    /// For others that are sent.
    Waiting,
    /// In bytes of its tar.
    Pushing {
        sent: u64,
        total: u64,
    },
    Pushed,
    /// The repository has it.
    Present,
    /// The registry has taken it over from this other repository.
    Mounted(String),
    /// It broke off, and is tried again in so many seconds.
    Retrying(u64),
}

/// The end of the reports that a push has.
#[derive(Clone, Debug)]
pub(super) struct Reports(mpsc::Sender<PushReport>);

/// For a push, and for whoever reads its reports. When nobody does any more, the push goes on.
pub(super) fn reports() -> (Reports, mpsc::Receiver<PushReport>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Reports(sender), receiver)
}

impl Reports {
    pub(super) async fn send(&self, report: PushReport) {
        // It fails if nobody reads any more.
        let _ = self.0.send(report).await;
    }

    pub(super) async fn layer(&self, diff_id: &Digest, step: LayerPush) {
        self.send(PushReport::Layer { diff_id: diff_id.clone(), step }).await;
    }

    /// Reports about the bytes of one layer, from a thread that blocks. Those that come too fast are
    /// left out.
    pub(super) fn sending(&self, diff_id: &Digest, total: u64) -> impl Fn(u64) + Send + use<> {
        let (reports, diff_id) = (self.0.clone(), diff_id.clone());
        let sum = AtomicU64::new(0);
        move |bytes| {
            let before = sum.fetch_add(bytes, Ordering::Relaxed);
            let sent = before + bytes;
            if before == 0 || before / GRAIN != sent / GRAIN || sent == total {
                let step = LayerPush::Pushing { sent, total };
                let _ = reports.try_send(PushReport::Layer { diff_id: diff_id.clone(), step });
            }
        }
    }
}
