//! Pulls that broke off: the layers that they have already, and the bytes of large blobs, wait for the next attempt.
//!
//! A pull writes `images/pulls/<hash of its name>.json` once it knows what it needs, and removes it at its end. What a daemon finds
//! there at start, and what an unavailable registry leaves, is held until that image is pulled again, or for `KEPT`. Bytes are in
//! `images/partial/<digest>`, nowhere else, and do not outlive a boot: nothing syncs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use berth_shim::record::{self, Found};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    fetch::Wanted,
    layers::{Layers, Lease},
    reference::Digest,
};
use crate::{id, layout::Layout};

/// The kubelet asks again within minutes.
const KEPT: Duration = Duration::from_secs(3600);
/// A smaller blob is quicker downloaded again than kept.
const PARTS_FROM: u64 = 32 << 20;
const CHUNK: usize = 128 << 10;

/// `images/pulls/*.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    boot_id: String,
    /// Keys that the layers may have, as `store::keys` gives them.
    layers: Vec<[String; 2]>,
    /// Hexadecimal digests of the layers as the registry has them.
    blobs: Vec<String>,
}

#[derive(Debug)]
struct Held {
    record: Record,
    _leases: Vec<Arc<Lease>>,
    /// Tells a pull that was held, and begun anew, and is held again from the first.
    token: String,
}

#[derive(Debug)]
pub(super) struct Unfinished {
    layout: Layout,
    boot_id: String,
    held: Mutex<BTreeMap<String, Held>>,
}

impl Unfinished {
    /// Takes up what an earlier daemon left; needs a tokio runtime.
    pub(super) fn open(layers: &Arc<Layers>, layout: Layout, boot_id: &str) -> anyhow::Result<Arc<Self>> {
        for directory in [layout.pulls(), layout.partial()] {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let own = Arc::new(Self { layout, boot_id: boot_id.to_owned(), held: Mutex::default() });
        for entry in fs::read_dir(own.layout.pulls()).context("read unfinished pulls")?.flatten() {
            match record::read::<Record>(&entry.path()) {
                Ok(Found::Record(record)) if own.path(&record.name) == entry.path() => {
                    let present =
                        record.layers.iter().flatten().filter_map(|key| layers.lease(std::slice::from_ref(key)));
                    let leases = present.map(Arc::new).collect();
                    own.hold(record, leases);
                }
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        own.sweep();
        Ok(own)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.layout.pulls().join(format!("{}.json", Digest::of(Sha256::digest(name)).hex()))
    }

    /// Notes what the pull of `name` needs.
    pub(super) fn begin(self: &Arc<Self>, name: &str, wanted: &[Wanted]) -> anyhow::Result<Attempt> {
        let layers = wanted.iter().map(|layer| layer.keys.clone()).collect();
        let blobs = wanted.iter().map(|layer| layer.blob.hex().to_owned()).collect();
        let record = Record { name: name.to_owned(), boot_id: self.boot_id.clone(), layers, blobs };
        record::write(&self.path(name), &record).context("note the pull")?;
        Ok(Attempt { unfinished: self.clone(), record })
    }

    fn hold(self: &Arc<Self>, record: Record, leases: Vec<Arc<Lease>>) {
        let (name, token) = (record.name.clone(), id::random_hex(8));
        self.held().insert(name.clone(), Held { record, _leases: leases, token: token.clone() });
        let own = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            let same = own.held().get(&name).is_some_and(|held| held.token == token);
            if same {
                tracing::info!(image = name, "nobody pulled it again: what an unfinished pull left is thrown away");
                own.forget(&name);
            }
        });
    }

    fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
        // Its leases end outside of the lock.
        let held = self.held().remove(name);
        drop(held);
        self.sweep();
    }

    /// Throws away bytes that no unfinished pull of this boot is about, but for those that are being written.
    fn sweep(&self) {
        let wanted: BTreeSet<String> = {
            let held = self.held();
            let of_this_boot = held.values().filter(|held| held.record.boot_id == self.boot_id);
            of_this_boot.flat_map(|held| &held.record.blobs).cloned().collect()
        };
        for entry in fs::read_dir(self.layout.partial()).into_iter().flatten().flatten() {
            let unused = || {
                File::open(entry.path())
                    .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
            };
            if entry.file_name().to_str().is_none_or(|name| !wanted.contains(name)) && unused() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// What there is of a blob, to be read and then continued; `None` for one that is not worth it or that another pull writes.
    pub(super) fn part(&self, blob: &Digest, size: u64) -> Option<Part> {
        if size < PARTS_FROM {
            return None;
        }
        let path = self.layout.partial().join(blob.hex());
        let file = File::options().create(true).truncate(false).read(true).append(true).open(&path).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        let length = file.metadata().ok()?.len();
        if length > size {
            file.set_len(0).ok()?;
        }
        let length = if length > size { 0 } else { length };
        Some(Part { path, length, left: length, file: Some(file) })
    }
}

/// A pull in progress. One that is dropped, with the daemon or without, stays noted.
#[derive(Debug)]
pub(super) struct Attempt {
    unfinished: Arc<Unfinished>,
    record: Record,
}

impl Attempt {
    /// Nothing of it is needed any more: it is done, or will never be.
    pub(super) fn end(self) {
        self.unfinished.forget(&self.record.name);
    }

    /// Another attempt may follow, for which it has these layers.
    pub(super) fn keep(self, layers: Vec<Arc<Lease>>) {
        self.unfinished.hold(self.record, layers);
    }
}

/// The first bytes of a blob, in a file.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    /// What an earlier attempt left.
    pub length: u64,
    left: u64,
    /// None once it cannot be written.
    file: Option<File>,
}

impl Part {
    /// The next of the bytes that an earlier attempt left.
    pub(super) fn read(&mut self) -> std::io::Result<Option<Bytes>> {
        let Some(file) = self.file.as_mut().filter(|_| self.left > 0) else { return Ok(None) };
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        file.read_exact(&mut chunk)?;
        self.left -= chunk.len() as u64;
        Ok(Some(chunk.into()))
    }

    /// Keeps what came. A disk that takes no more is no reason to fail: the layer itself will say so, if it does not fit either.
    pub(super) fn append(&mut self, chunk: &[u8]) {
        let written = self.file.as_mut().map(|file| file.write_all(chunk));
        if let Some(Err(error)) = written {
            tracing::debug!(path = %self.path.display(), %error, "bytes of a pull are not kept");
            self.discard();
        }
    }

    pub(super) fn discard(&mut self) {
        self.file = None;
        let _ = fs::remove_file(&self.path);
    }
}
