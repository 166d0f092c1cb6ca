//! Images: list, status, pull, remove.

mod archive;
mod artifact;
mod auth;
mod check;
mod client;
mod download;
mod export;
mod fetch;
#[cfg(fuzzing)]
pub mod fuzz;
mod hosts;
mod keychain;
mod layers;
mod manifest;
mod providers;
mod pull;
mod reference;
mod registry;
mod store;
mod trust;
mod unfinished;
mod unpack;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, anyhow};

pub(crate) use auth::Given;
pub(crate) use layers::{Lease, Usage};
pub(crate) use reference::Digest;
pub(crate) use store::Image;
pub(crate) use unpack::FILES;
pub(crate) use view::contains;

use crate::{
    config::{self, Config},
    error::{Error, Result},
    layout::Layout,
};
use auth::Credentials;
use check::Verdict;
use export::Exported;
use layers::Layers;
use pull::Puller;
use reference::Reference;
use store::{Store, layer_keys};
use tokio::sync::mpsc;
use unfinished::Unfinished;

/// What a check found of an image.
#[derive(Debug)]
pub(crate) struct Checked {
    pub id: Digest,
    pub names: Vec<String>,
    pub state: Health,
    /// What is wrong with it, or was.
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Whole,
    Damaged,
    Repaired,
}

#[derive(Debug)]
pub(crate) struct Images {
    store: Arc<Store>,
    puller: Puller,
    registry: config::Registry,
    /// Patterns of names.
    pinned: Vec<String>,
    /// Of `images_dir`.
    preloaded: Mutex<BTreeSet<Digest>>,
}

impl Images {
    pub(crate) fn open(layout: Layout, config: &Config, boot_id: &str) -> anyhow::Result<Self> {
        let layers = Layers::open(layout.clone(), boot_id)?;
        let store = Store::open(layout.clone(), layers.clone())?;
        let unfinished = Unfinished::open(&layers, layout, boot_id)?;
        Ok(Self {
            puller: Puller::new(store.clone(), unfinished, &config.registry),
            store,
            registry: config.registry.clone(),
            pinned: config.pinned_images.clone(),
            preloaded: Mutex::default(),
        })
    }

    /// PullImage: the image's id.
    pub(crate) async fn pull(&self, name: &str, given: Given) -> Result<Digest> {
        let reference = Reference::parse(name)?;
        let credentials = match given.is_empty() {
            true => self.of_the_node(&reference).await?,
            false => given.for_host(&reference.host)?,
        };
        self.puller.pull(reference, credentials).await
    }

    /// Credentials that the node has by itself.
    async fn of_the_node(&self, reference: &Reference) -> Result<Credentials> {
        match (keychain::find(&self.registry.auth_file, reference).await?, &self.registry.credential_providers) {
            (Credentials::Anonymous, Some(plugins)) => providers::find(plugins, reference).await,
            (found, _) => Ok(found),
        }
    }

    /// Adds the images in the archive at `path`, whose names they have or, where there is none, `name`: of each its id and its tags.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no archive of images.
    pub(crate) async fn import(&self, path: PathBuf, name: &str) -> Result<Vec<(Digest, Vec<String>)>> {
        let name = (!name.is_empty()).then(|| Reference::parse(name)).transpose()?;
        let own = self.puller.clone();
        // In a task of its own: a caller that goes away changes nothing.
        tokio::spawn(async move { own.import(path, name).await }).await.context("import")?
    }

    /// Adds the images in every file of `directory`, which may be absent, in the order of their names. One that is wrong is said to
    /// be, and keeps nothing else from starting.
    pub(crate) async fn import_all(&self, directory: &Path) {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            entries => entries.map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file())),
        };
        match entries {
            Err(error) => tracing::error!(directory = %directory.display(), %error, "images to import"),
            Ok(files) => {
                let mut files: Vec<PathBuf> = files.collect();
                files.sort_unstable();
                for file in files {
                    match self.import(file.clone(), "").await {
                        Ok(images) => self.preloaded().extend(images.into_iter().map(|(id, _)| id)),
                        Err(error) => tracing::error!(file = %file.display(), %error, "import"),
                    }
                }
            }
        }
    }

    /// Writes images by their names, as `find` takes them, into the file or pipe at `path`.
    ///
    /// # Errors
    /// `NotFound` for a name that no image has, `FailedPrecondition` for a layer that cannot be exported.
    pub(crate) async fn export(&self, path: PathBuf, names: &[String]) -> Result<()> {
        let mut images: BTreeMap<Digest, Exported> = BTreeMap::new();
        let mut leases = Vec::new();
        for name in names {
            let image = self.find(name)?.ok_or_else(|| Error::not_found(format!("no image {name:?}")))?;
            let lease = self.store.layers.lease(&image.layers);
            leases.push(lease.ok_or_else(|| Error::precondition(format!("{name}: a layer is damaged")))?);
            // By its id an image goes with all of its tags.
            let asked = Reference::parse(name).ok().and_then(|reference| reference.repo_tag());
            let tags = self.names(&image).0;
            let tags = if let Some(tag) = asked.filter(|tag| tags.contains(tag)) { vec![tag] } else { tags };
            let exported = images.entry(image.id.clone()).or_insert(Exported { image, tags: Vec::new() });
            exported.tags.extend(tags);
            exported.tags.sort_unstable();
            exported.tags.dedup();
        }
        let (store, images) = (self.store.clone(), images.into_values().collect::<Vec<_>>());
        blocking(move || {
            let out =
                fs::File::options().write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
            export::write(&store, &images, out)
        })
        .await
    }

    /// Verifies every image; of each, as it is done, what was found goes to `report`. With `repair`, what is damaged is pulled again.
    ///
    /// # Errors
    /// Nobody reads the reports any more.
    pub(crate) async fn check(&self, repair: bool, report: mpsc::Sender<Checked>) -> Result<()> {
        let mut verdicts: HashMap<String, Verdict> = HashMap::new();
        for image in self.store.all() {
            let (mut problems, mut damaged) = (Vec::new(), Vec::new());
            // What is removed meanwhile stays until it was looked at.
            let lease = self.store.layers.lease(&image.layers);
            for (diff_id, key) in layer_keys(&image)? {
                if !verdicts.contains_key(&key) {
                    let (directory, diff_id) = (self.store.layers.directory(&key), diff_id.clone());
                    let verdict = blocking(move || Ok(check::verify(&directory, &diff_id))).await?;
                    verdicts.insert(key.clone(), verdict);
                }
                match &verdicts[&key] {
                    Verdict::Whole => {}
                    Verdict::Unknown => {
                        problems.push(format!("layer {diff_id} cannot be verified: its tar cannot be made again"))
                    }
                    Verdict::Damaged(what) => {
                        problems.push(format!("layer {diff_id}: {what}"));
                        damaged.push(key);
                    }
                }
            }
            drop(lease);
            if self.store.by_id(image.id.as_str())?.is_none() {
                continue;
            }
            let documents = self.store.check_documents(&image.id);
            problems.extend(documents.as_ref().err().map(|error| format!("{error:#}")));
            let mut state = match damaged.is_empty() && documents.is_ok() {
                true => Health::Whole,
                false => Health::Damaged,
            };
            if repair && state == Health::Damaged {
                match self.repair(&image, &damaged).await {
                    Ok(()) => {
                        damaged.into_iter().for_each(|key| drop(verdicts.insert(key, Verdict::Whole)));
                        state = Health::Repaired;
                    }
                    Err(error) => problems.push(format!("not repaired: {error}")),
                }
            }
            let (tags, digests) = self.names(&image);
            let names = if tags.is_empty() { digests } else { tags };
            let checked = Checked { id: image.id.clone(), names, state, problems };
            report.send(checked).await.map_err(|_| Error::invalid("nobody listens"))?;
        }
        Ok(())
    }

    /// Pulls an image again, whose layers `damaged` are then replaced.
    async fn repair(&self, image: &Image, damaged: &[String]) -> Result<()> {
        let (_, digests) = self.names(image);
        let name = digests.first();
        let name = name.ok_or_else(|| Error::precondition("it came from no registry: import it again"))?;
        if !damaged.iter().all(|key| self.store.distrust(key)) {
            return Err(Error::precondition("a container uses it: remove that first"));
        }
        self.pull(name, Given::default()).await.map(drop)
    }

    /// By id, prefix of an id, tag or digest; `None` when there is none.
    ///
    /// # Errors
    /// `InvalidArgument` for what is neither an id nor a reference.
    pub(crate) fn find(&self, text: &str) -> Result<Option<Arc<Image>>> {
        if text.is_empty() {
            return Err(Error::invalid("no image was named"));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hex && let Some(image) = self.store.by_id(text)? {
            return Ok(Some(image));
        }
        if text.starts_with("sha256:") {
            return Digest::parse(text).map(|_| None);
        }
        let reference = Reference::parse(text)?;
        let name = match &reference.digest {
            Some(digest) => reference.repo_digest(digest),
            None => reference.to_string(),
        };
        Ok(self.store.by_name(&name))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.store.all()
    }

    /// Tags and digests by which an image is known.
    pub(crate) fn names(&self, image: &Image) -> (Vec<String>, Vec<String>) {
        self.store.names(&image.id).into_iter().partition(|name| !name.contains('@'))
    }

    fn preloaded(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.preloaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kubelet is to leave it alone when it makes room.
    pub(crate) fn is_pinned(&self, image: &Image) -> bool {
        let (tags, digests) = self.names(image);
        let wanted = |name: &String| self.pinned.iter().any(|pattern| fits(pattern, name));
        self.preloaded().contains(&image.id) || tags.iter().chain(&digests).any(wanted)
    }

    /// RemoveImage: every name of the image; nothing to do when there is none.
    pub(crate) fn remove(&self, text: &str) -> Result<()> {
        match self.find(text)? {
            Some(image) => self.store.remove(&image.id),
            None => Ok(()),
        }
    }

    /// Keeps layers for a container.
    pub(crate) fn lease(&self, layers: &[String]) -> Option<Lease> {
        self.store.layers.lease(layers)
    }

    /// Throws away the layers that nothing needs, and syncs what an earlier daemon did not; for start-up, once containers hold theirs.
    pub(crate) fn collect(&self) {
        self.store.layers.collect();
        self.store.make_durable_later();
    }

    pub(crate) fn usage(&self) -> Usage {
        self.store.layers.usage()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| anyhow!("work ended early: {error}"))?
}

/// Whether `name` is what `pattern` says, whose every `*` is any text.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, name, expected) in [
            ("a.io/x:1", "a.io/x:1", true),
            ("a.io/x:1", "a.io/x:12", false),
            ("a.io/*", "a.io/x/y:1", true),
            ("*pause*", "registry.k8s.io/pause:3.10", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
