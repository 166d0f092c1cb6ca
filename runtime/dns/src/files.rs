//! The engine's files, followed as they change: `networks/ID.json` and `containers/ID.json`, each
//! replaced whole by a rename, and `serving/ID`, which is this program's answer: the path of the
//! namespace that the container's server listens in, and after it a line with the reason if it cannot.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, linux::fs::MetadataExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, ensure};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

use crate::serve::{Server, Shared};

/// A network of some thousand containers.
const LARGEST: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    watch: AsyncFd<OwnedFd>,
    networks: i32,
    shared: Rc<Shared>,
    /// By container: device and inode of its namespace, and the server in it.
    servers: BTreeMap<String, ((u64, u64), Server)>,
}

impl Files {
    /// Watches the directory and serves what is there.
    pub(crate) fn new(directory: &Path, shared: Rc<Shared>) -> anyhow::Result<Self> {
        for part in ["networks", "containers", "serving"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        clear(directory)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let networks = inotify::add_watch(&watch, directory.join("networks"), changes)?;
        inotify::add_watch(&watch, directory.join("containers"), changes)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd stays the same descriptor, which is what the new name asks for"
        )]
        let watch = AsyncFd::new(watch)?;
        let mut files = Self {
            directory: directory.to_owned(),
            watch,
            networks,
            shared,
            servers: BTreeMap::new(),
        };
        files.read_all();
        Ok(files)
    }

    /// Whether no container has a file, be it one that cannot be read.
    pub(crate) fn is_idle(&self) -> io::Result<bool> {
        let mut listed = fs::read_dir(self.directory.join("containers"))?.flatten();
        Ok(!listed.any(|entry| entry.file_name().to_str().and_then(id_of).is_some()))
    }

    /// Serves nobody any more.
    ///
    /// # Errors
    /// An answer cannot be removed.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.servers.clear();
        clear(&self.directory)
    }

    pub(crate) fn read_all(&mut self) {
        for (part, known) in [("networks", self.known_networks()), ("containers", self.known())] {
            let listed = fs::read_dir(self.directory.join(part)).into_iter().flatten().flatten();
            let found = listed.filter_map(|entry| id_of(entry.file_name().to_str()?));
            for id in found.chain(known) {
                self.read(part == "networks", &id);
            }
        }
    }

    fn known_networks(&self) -> Vec<String> {
        self.shared.table.borrow().networks.keys().cloned().collect()
    }

    fn known(&self) -> Vec<String> {
        self.shared.table.borrow().askers.keys().cloned().collect()
    }

    /// Waits for changes, and takes them in.
    pub(crate) async fn follow(&mut self) -> anyhow::Result<()> {
        let mut changed = Vec::new();
        let mut lost = false;
        {
            let mut ready = self.watch.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(ready.get_inner(), &mut buffer);
            loop {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error).context("read what has changed"),
                };
                lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                let name = event.file_name().and_then(|name| name.to_str().ok());
                if let Some(id) = name.and_then(id_of) {
                    changed.push((event.wd() == self.networks, id));
                }
            }
            ready.clear_ready();
        }
        for (network, id) in changed {
            self.read(network, &id);
        }
        if lost {
            self.read_all();
        }
        Ok(())
    }

    /// A file that cannot be understood changes nothing: what was known before goes on.
    fn read(&mut self, network: bool, id: &str) {
        let read = match network {
            true => self.read_network(id),
            false => self.read_container(id),
        };
        if let Err(error) = read {
            eprintln!("berth-dns: {id}: {error:#}");
        }
    }

    fn read_network(&self, id: &str) -> anyhow::Result<()> {
        let network = parse(&self.directory.join("networks").join(format!("{id}.json")))?;
        let networks = &mut self.shared.table.borrow_mut().networks;
        match network {
            Some(network) => networks.insert(id.to_owned(), network),
            None => networks.remove(id),
        };
        Ok(())
    }

    fn read_container(&mut self, id: &str) -> anyhow::Result<()> {
        let serving = self.directory.join("serving").join(id);
        let file = self.directory.join("containers").join(format!("{id}.json"));
        let Some(asker) = parse::<crate::table::Asker>(&file)? else {
            self.servers.remove(id);
            self.shared.table.borrow_mut().askers.remove(id);
            return match fs::remove_file(serving) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        };
        let namespace = asker.namespace.clone();
        self.shared.table.borrow_mut().askers.insert(id.to_owned(), asker);
        let served = self.serve(id, &namespace);
        let why = served.as_ref().err().map(|error| format!("\n{error:#}")).unwrap_or_default();
        // By a rename, so that nobody reads half of it.
        let new = serving.with_extension("new");
        fs::write(&new, format!("{}{why}", namespace.display()))?;
        fs::rename(new, serving)?;
        served
    }

    /// A container that was started again has another namespace at the same path.
    fn serve(&mut self, id: &str, namespace: &Path) -> anyhow::Result<()> {
        let file =
            File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
        let metadata = file.metadata()?;
        let identity = (metadata.st_dev(), metadata.st_ino());
        if self.servers.get(id).is_some_and(|(served, _)| *served == identity) {
            return Ok(());
        }
        self.servers.remove(id);
        let server = Server::start(self.shared.clone(), id, file)
            .with_context(|| format!("listen in {}", namespace.display()))?;
        self.servers.insert(id.to_owned(), (identity, server));
        Ok(())
    }
}

/// Takes the answers back: what an earlier process, or this one, has served is served no longer.
fn clear(directory: &Path) -> io::Result<()> {
    for answer in fs::read_dir(directory.join("serving"))?.flatten() {
        fs::remove_file(answer.path())?;
    }
    Ok(())
}

/// The id that a file is named by, if it is one of the engine's and none that is being written.
fn id_of(name: &str) -> Option<String> {
    let id = name.strip_suffix(".json")?;
    let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| id.to_owned())
}

fn parse<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= LARGEST, "{} is larger than {LARGEST} bytes", path.display());
    serde_json::from_slice(&text).map(Some).with_context(|| format!("parse {}", path.display()))
}
