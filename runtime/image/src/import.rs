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
    archive::{self, ArchiveReader},
    digest::Digest,
    fetch_image::ImageFetcher,
    fetch_layer::BlobSource,
    reference::Reference,
    store::{Nameless, Store},
    unblock::unblock,
};

/// An image that was imported.
#[derive(Debug)]
pub struct ImportedImage {
    pub id: Digest,
    pub tags: Vec<String>,
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
    let imported = import_all(store, fetcher, path, name).await;
    // After a failure nobody needs the layers that were unpacked before it.
    store.collect();
    imported
}

async fn import_all(
    store: &Store,
    fetcher: &ImageFetcher,
    path: PathBuf,
    name: Option<Reference>,
) -> Result<Vec<ImportedImage>> {
    let scratch = store.layers.scratch();
    let read = unblock(move || {
        let mut reader = ArchiveReader::open(&path, &scratch)?;
        let images = archive::images(&mut reader, name)?;
        Ok((reader, images))
    });
    let (reader, images) = step(import_image::READ, read).await?;
    let source = BlobSource::Archive(Arc::new(reader));
    // All layers first, then all names, so that an archive with a damaged end adds no image.
    let mut fetched = Vec::new();
    for image in images {
        // Without a resume state: the archive is still there, so the import can simply be repeated.
        let layers = fetcher.fetch_layers(&source, &image.manifest, None, None).await?;
        fetched.push((layers, image));
    }
    let mut imported = Vec::new();
    for (layers, archived) in fetched {
        let tags = archived.tags();
        let names = archived.names();
        let adding = fetcher.add(archived.manifest, layers, names, Nameless::Dropped);
        let image = step(pull_image::ADD, adding).await?;
        tracing::info!(
            images = ?tags,
            id = %image.id,
            layers = image.layers.len(),
            bytes = image.size,
            "imported"
        );
        imported.push(ImportedImage { id: image.id.clone(), tags });
    }
    Ok(imported)
}
