//! Images: list, status, pull, remove.

mod auth;
mod hosts;
mod pull;
mod reference;
mod registry;
mod store;
mod unpack;
mod view;

use std::{path::PathBuf, sync::Arc};

pub(crate) use auth::Given;
pub(crate) use reference::Digest;
pub(crate) use store::{FILES, Image, Lease, Usage};
pub(crate) use view::contains;

use crate::{
    error::{Error, Result},
    layout::Layout,
};
use pull::Puller;
use reference::Reference;
use store::Store;

#[derive(Debug)]
pub(crate) struct Images {
    store: Arc<Store>,
    puller: Puller,
}

impl Images {
    pub(crate) fn open(layout: Layout, config_path: PathBuf, boot_id: &str) -> anyhow::Result<Self> {
        let store = Store::open(layout, boot_id)?;
        Ok(Self { puller: Puller::new(store.clone(), config_path), store })
    }

    /// PullImage: the image's id.
    pub(crate) async fn pull(&self, name: &str, given: Given) -> Result<Digest> {
        let reference = Reference::parse(name)?;
        let credentials = given.for_host(&reference.host)?;
        self.puller.pull(reference, credentials).await
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

    /// RemoveImage: every name of the image; nothing to do when there is none.
    pub(crate) fn remove(&self, text: &str) -> Result<()> {
        match self.find(text)? {
            Some(image) => self.store.remove(&image.id),
            None => Ok(()),
        }
    }

    /// Keeps layers for a container.
    pub(crate) fn lease(&self, layers: &[String]) -> Option<Lease> {
        self.store.lease(layers)
    }

    /// Throws away the layers that nothing needs; for start-up, once containers hold theirs.
    pub(crate) fn collect(&self) {
        self.store.collect();
    }

    pub(crate) fn usage(&self) -> Usage {
        self.store.usage()
    }
}
