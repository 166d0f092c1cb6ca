//! Tells readers of logs when there may be more to read, by inotify(7).
//!
//! One instance serves all readers, because a user may have only 128 of them by default. It watches
//! directories and not files, so that it also sees a new file after a rotation.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::{io::unix::AsyncFd, sync::watch};

/// Bytes for events that are read at once.
const EVENTS: usize = 4096;

/// Watches the directories of logs for all readers.
#[derive(Debug)]
pub struct LogWatcher {
    inotify: AsyncFd<OwnedFd>,
    /// The readers of a directory, by its watch descriptor.
    watches: Mutex<HashMap<i32, watch::Sender<()>>>,
}

/// One reader's interest in a directory.
#[derive(Debug)]
pub struct Watch {
    watcher: Arc<LogWatcher>,
    descriptor: i32,
    changes: Option<watch::Receiver<()>>,
}

impl LogWatcher {
    /// Starts watching, in a task that ends with the runtime.
    ///
    /// # Errors
    /// The user has no more instances of inotify.
    pub fn start() -> io::Result<Arc<Self>> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // `AsyncFd::new` is deprecated for types that may change their descriptor, and what
        // replaces it is unsafe. An OwnedFd always has the same one.
        #[allow(deprecated)]
        let inotify = AsyncFd::new(inotify)?;
        let watcher = Arc::new(Self { inotify, watches: Mutex::default() });
        let own = watcher.clone();
        tokio::spawn(async move { own.run().await });
        Ok(watcher)
    }

    /// Watches `directory`, which exists, until the result is dropped.
    ///
    /// # Errors
    /// The directory does not exist, or the user has no more watches.
    pub fn watch(self: &Arc<Self>, directory: &Path) -> io::Result<Watch> {
        let flags =
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        // Locked from here on, so that no other reader removes the same watch meanwhile.
        let mut watches = self.watches();
        // The kernel gives the same descriptor for the same directory.
        let descriptor = inotify::add_watch(self.inotify.get_ref(), directory, flags)?;
        let changes = watches.entry(descriptor).or_default().subscribe();
        drop(watches);
        Ok(Watch { watcher: self.clone(), descriptor, changes: Some(changes) })
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<()>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else { return };
            if ready.try_io(|inotify| self.tell(inotify.get_ref())).is_ok_and(|told| told.is_err())
            {
                return;
            }
        }
    }

    /// Wakes the readers of all directories that have events.
    fn tell(&self, inotify: &OwnedFd) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut reader = Reader::new(inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let watches = self.watches();
            match watches.get(&event.wd()) {
                Some(readers) => readers.send_replace(()),
                // The queue was full: nobody knows what was lost.
                None if event.wd() == -1 => {
                    watches.values().for_each(|readers| readers.send_replace(()));
                }
                None => {}
            }
        }
    }
}

impl Watch {
    /// Resolves when something has changed since the last time. It may also do so without a change.
    pub async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes
            && changes.changed().await.is_err()
        {
            // Nothing would ever wake this reader.
            std::future::pending().await
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.changes = None;
        let mut watches = self.watcher.watches();
        if watches.get(&self.descriptor).is_some_and(|readers| readers.receiver_count() == 0) {
            watches.remove(&self.descriptor);
            // It fails if the directory is gone, and the watch with it.
            let _ = inotify::remove_watch(self.watcher.inotify.get_ref(), self.descriptor);
        }
    }
}
