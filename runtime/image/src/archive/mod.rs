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

pub(super) use self::image::ArchivedImage;
pub use self::reader::ArchiveReader;

use super::reference::Reference;

/// What becomes of an image that has no name in its archive.
#[derive(Debug)]
pub(super) enum Unnamed {
    Refused,
    /// It gets this one. With several such images that would be ambiguous.
    Takes(Reference),
    StaysSo,
}

/// The images in an archive.
///
/// # Errors
/// `InvalidArgument` if the archive has neither of the two formats, or an image has no name.
pub(super) fn images(archive: &mut ArchiveReader, unnamed: Unnamed) -> Result<Vec<ArchivedImage>> {
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
    let mut name = match unnamed {
        Unnamed::StaysSo => return Ok(images),
        Unnamed::Takes(name) => Some(name),
        Unnamed::Refused => None,
    };
    for image in images.iter_mut().filter(|image| image.references.is_empty()) {
        let name = name
            .take()
            .ok_or_else(|| reader::wrong("an image has no name: give one with --name"))?;
        image.references.push(name);
    }
    Ok(images)
}
