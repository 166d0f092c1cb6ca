//! A container as the engine holds it in memory.

use std::{
    fs, mem,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, bail};
use berth_base::{blocking::blocking, error::ignore_not_found, reserve::Reserve};
use berth_image::{ImageUse, Lease};
use berth_shim::record as disk;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    record::{Directory, Record},
    state::{Last, Phase, State},
};

/// Streams that are to be joined to the next run: those of stdin, stdout and stderr that are there.
#[derive(Debug)]
pub(crate) struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Set when the client is gone, which must not end the input of a run that it has not seen.
    pub left: Arc<AtomicBool>,
}

/// What keeps the image of a container: a start makes the root of it again.
#[derive(Debug)]
pub(crate) struct ImageLease {
    /// `None` if it is not known which image that is.
    pub _image: Option<ImageUse>,
    pub _layers: Lease,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub id: String,
    pub directory: Directory,
    record: Mutex<Arc<Record>>,
    state: watch::Sender<State>,
    /// Held while a record is changed, for as long as the disk takes. Readers do not need it.
    writing: Mutex<()>,
    /// Gives room on a full disk: a stop or a removal there is likely to be what makes more.
    reserve: Arc<Reserve>,
    /// Held by whatever begins, ends or removes it.
    pub life: tokio::sync::Mutex<()>,
    /// Held by whoever has its files mounted (`files`), and by whoever makes a run.
    pub files: Arc<tokio::sync::RwLock<()>>,
    /// Clients that attached before the start.
    waiting: Mutex<Vec<Streams>>,
    /// Keeps its image and its layers, until it is removed.
    image: Mutex<Option<ImageLease>>,
}

impl Container {
    pub(crate) fn new(
        directory: Directory,
        record: Record,
        last: Last,
        image: ImageLease,
        reserve: Arc<Reserve>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            directory,
            record: Mutex::new(Arc::new(record)),
            state: watch::Sender::new(State::at_rest(last)),
            writing: Mutex::default(),
            reserve,
            life: tokio::sync::Mutex::default(),
            files: Arc::default(),
            waiting: Mutex::default(),
            image: Mutex::new(Some(image)),
        })
    }

    pub(crate) fn record(&self) -> Arc<Record> {
        lock(&self.record).clone()
    }

    /// Changes what was asked for, on disk first.
    ///
    /// # Errors
    /// The disk cannot be written, or the record is lost; nothing is changed then.
    pub(crate) fn change_record(&self, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        blocking(|| {
            let _writing = lock(&self.writing);
            let mut changed = Record::clone(&self.record());
            if changed.is_lost {
                bail!(changed.why_lost());
            }
            change(&mut changed);
            self.write(&self.directory.record(), &changed)?;
            *lock(&self.record) = Arc::new(changed);
            Ok(())
        })
    }

    /// Makes a container of a build one of the user's, who may look into it.
    ///
    /// # Errors
    /// As `change_record`; the note of its boot cannot be removed.
    pub(crate) fn hand_over(&self) -> anyhow::Result<()> {
        self.change_record(|record| record.is_of_build = false)?;
        blocking(|| ignore_not_found(fs::remove_file(self.directory.boot())))
            .context("remove the note of its boot")
    }

    /// Writes one of its records. Of one that outlives the boot it is on the disk then: dockerd waits
    /// for that as well, and so do the shims with the end of a run. The state no less than what was
    /// asked for, since the next boot goes by it: an `always` that was started comes again, an
    /// `unless-stopped` that was stopped does not, and an exit code that was told stays what it was.
    fn write<T: Serialize>(&self, path: &Path, record: &T) -> anyhow::Result<()> {
        let written = self.reserve.with_room(|| match self.record().outlives_boot() {
            true => disk::write_durable(path, record),
            false => disk::write(path, record),
        });
        written.with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Whether nothing is left of it.
    pub(crate) fn is_removed(&self) -> bool {
        self.state.borrow().is_removed()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Changes its state in memory only.
    pub(crate) fn enter(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.enter(|state| state.phase = phase);
    }

    /// Ends the wait for a restart. Whether there was one.
    pub(crate) fn stop_restarting(&self) -> bool {
        self.state.send_if_modified(|state| {
            let was_restarting = state.phase == Phase::Restarting;
            if was_restarting {
                state.phase = Phase::Exited;
                state.ended += 1;
            }
            was_restarting
        })
    }

    /// Changes `state.json`, on disk first.
    ///
    /// # Errors
    /// The disk cannot be written; nothing is changed then.
    pub(crate) fn change_last(&self, change: impl FnOnce(&mut Last)) -> anyhow::Result<()> {
        blocking(|| {
            // A stop and the end that it leads to change it at the same time.
            let _writing = lock(&self.writing);
            let mut last = self.state().last;
            change(&mut last);
            self.write(&self.directory.state(), &last)?;
            self.enter(|state| state.last = last);
            Ok(())
        })
    }

    /// Allows its image and its layers to be deleted, once it is removed.
    pub(crate) fn release_image(&self) {
        *lock(&self.image) = None;
    }

    /// Keeps streams for the next run.
    pub(crate) fn await_run(&self, streams: Streams) {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|streams| !streams.left.load(Ordering::Relaxed));
        waiting.push(streams);
    }

    /// Takes the streams that wait. Those that are dropped end.
    pub(crate) fn take_waiting(&self) -> Vec<Streams> {
        let mut waiting = mem::take(&mut *lock(&self.waiting));
        waiting.retain(|streams| !streams.left.load(Ordering::Relaxed));
        waiting
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
