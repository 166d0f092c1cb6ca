//! Imports the images of an archive. Layers are fetched in the same way as in a pull.

use std::{path::PathBuf, sync::Arc};

use berth_base::{
    error::Result,
    observe::{
        step,
        steps::{import_image, pull_image},
    },
};

use crate::{
    archive::{self, ArchiveReader, ArchivedImage, Unnamed},
    digest::Digest,
    fetch_image::ImageFetcher,
    fetch_layer::BlobSource,
    progress::Watched,
    reference::Reference,
    store::{Image, Nameless, Store},
    unblock::unblock,
};

/// An image that was imported.
#[derive(Debug)]
pub struct ImportedImage {
    pub id: Digest,
    pub tags: Vec<String>,
    /// Those of the tags that another image had before, with its id.
    pub displaced: Vec<(String, Digest)>,
}

/// By what the images of an archive are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// By their digests as well, as after a pull. An image that loses its last name goes.
    AsPulled,
    /// By tags only. An image that loses its last name stays without one.
    ByTags,
}

/// Adds the images in the archive at `path`. An image that has no name in the archive gets `name`.
///
/// # Errors
/// `InvalidArgument` if the file is not an archive of images.
pub(super) async fn import(
    store: &Store,
    fetcher: &ImageFetcher,
    path: PathBuf,
    name: Option<Reference>,
) -> Result<Vec<ImportedImage>> {
    let scratch = store.layers.scratch();
    let unnamed = name.map_or(Unnamed::Refused, Unnamed::Takes);
    let read = unblock(move || {
        let mut reader = ArchiveReader::open(&path, &scratch)?;
        let images = archive::images(&mut reader, unnamed)?;
        Ok((reader, images))
    });
    let (reader, images) = step(import_image::READ, read).await?;
    let source = BlobSource::Archive { reader: Arc::new(reader), watched: Watched::default() };
    add_all(store, fetcher, (source, images), Naming::AsPulled).await
}

/// Adds the images in an archive under their tags. One without any stays without a name.
///
/// # Errors
/// `InvalidArgument` if it is not an archive of images.
pub(super) async fn load(
    store: &Store,
    fetcher: &ImageFetcher,
    archive: ArchiveReader,
    watched: Watched,
) -> Result<Vec<ImportedImage>> {
    let read = unblock(move || {
        let mut archive = archive;
        let images = archive::images(&mut archive, Unnamed::StaysSo)?;
        Ok((archive, images))
    });
    let (reader, images) = step(import_image::READ, read).await?;
    let source = BlobSource::Archive { reader: Arc::new(reader), watched };
    add_all(store, fetcher, (source, images), Naming::ByTags).await
}

async fn add_all(
    store: &Store,
    fetcher: &ImageFetcher,
    (source, images): (BlobSource, Vec<ArchivedImage>),
    naming: Naming,
) -> Result<Vec<ImportedImage>> {
    let added = fetch_and_add(store, fetcher, &source, images, naming).await;
    // After a failure nobody needs the layers that were unpacked before it.
    store.collect();
    added
}

async fn fetch_and_add(
    store: &Store,
    fetcher: &ImageFetcher,
    source: &BlobSource,
    images: Vec<ArchivedImage>,
    naming: Naming,
) -> Result<Vec<ImportedImage>> {
    // All layers first, then all names, so that an archive with a damaged end adds no image.
    let mut fetched = Vec::new();
    for image in images {
        // Without a resume state: the archive is still there, so the import can simply be repeated.
        let layers = fetcher.fetch_layers(source, &image.manifest, None, None).await?;
        fetched.push((layers, image));
    }
    let mut imported = Vec::new();
    for (layers, archived) in fetched {
        let tags = archived.tags();
        let (names, displaced) = match naming {
            Naming::AsPulled => (archived.names(), Nameless::Dropped),
            Naming::ByTags => (tags.clone(), Nameless::Kept),
        };
        let before = tags.iter().filter_map(|tag| Some((tag.clone(), store.by_name(tag)?)));
        let before: Vec<(String, Arc<Image>)> = before.collect();
        let adding = fetcher.add(archived.manifest, layers, names, displaced);
        let image = step(pull_image::ADD, adding).await?;
        tracing::info!(
            images = ?tags,
            id = %image.id,
            layers = image.layers.len(),
            bytes = image.size,
            "imported"
        );
        let displaced = before.into_iter().filter(|(_, before)| before.id != image.id);
        let displaced = displaced.map(|(tag, before)| (tag, before.id.clone())).collect();
        imported.push(ImportedImage { id: image.id.clone(), tags, displaced });
    }
    Ok(imported)
}
