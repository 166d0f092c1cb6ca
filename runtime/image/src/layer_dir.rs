//! The files in a layer's directory, on which unpacking, storing, checking and running a container
//! agree.

/// The layer's files: a lower directory for overlayfs.
pub const FILES: &str = "fs";

/// The parts of the layer's tar that are not the content of files; see `unpack::tar_split`.
pub(super) const TAR_SPLIT: &str = "tar.zst";

/// The repositories that have the layer, and its digest there; see `push`. It may be missing.
pub(super) const UPLOADS: &str = "uploads.json";

/// The layer's size, and whether it is known to be durable. Written last: a directory without it is
/// not a complete layer.
pub(super) const RECORD: &str = "layer.json";
