//! Images in a tar, for nodes without a registry: an OCI image layout (OCI image specification,
//! image-layout.md) or the format of `docker save`.
//!
//! The tar is indexed once and read in place. Only its layers are unpacked, in the same way as
//! those of a pull.

mod docker;
mod image;
mod oci;
mod reader;

use berth_base::error::Result;

pub(super) use self::{image::ArchivedImage, reader::ArchiveReader};

use super::reference::Reference;

/// The images in an archive. An image that has no name there gets `name`.
///
/// # Errors
/// `InvalidArgument` if the archive has neither of the two formats, or an image has no name.
pub(super) fn images(
    archive: &mut ArchiveReader,
    name: Option<Reference>,
) -> Result<Vec<ArchivedImage>> {
    let mut images = Vec::new();
    if archive.has(oci::INDEX) {
        images = oci::images(archive)?;
    }
    // Since Docker 25, `docker save` writes both formats into one file. The OCI format is
    // preferred, because it has real manifests, but it may lack the names.
    let is_nameless = images.iter().any(|image| image.references.is_empty());
    if (images.is_empty() || is_nameless) && archive.has(docker::MANIFEST) {
        images = docker::images(archive)?;
    }
    if images.is_empty() {
        return Err(reader::wrong(
            "neither an OCI image layout nor a docker-archive with an image for this machine",
        ));
    }
    // `name` is for one image. With several nameless ones it would be ambiguous.
    let mut name = name;
    for image in images.iter_mut().filter(|image| image.references.is_empty()) {
        let name = name
            .take()
            .ok_or_else(|| reader::wrong("an image has no name: give one with --name"))?;
        image.references.push(name);
    }
    Ok(images)
}
