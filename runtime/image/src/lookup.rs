//! Finds images by the names that users and the kubelet give.

use std::sync::Arc;

use berth_base::error::{Error, Result};

use crate::{
    digest::Digest,
    reference::Reference,
    store::{Image, Store},
};

/// Finds an image by id, unique prefix of an id, tag or digest.
///
/// # Errors
/// `InvalidArgument` if `text` is neither an id nor a reference, or is the prefix of several ids.
pub(super) fn find(store: &Store, text: &str) -> Result<Option<Arc<Image>>> {
    if text.is_empty() {
        return Err(Error::invalid("no image was named"));
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Text such as `cafe` may be the start of an id and the name of a repository. The id wins.
    if is_hex && let Some(image) = store.by_id(text)? {
        return Ok(Some(image));
    }
    if text.starts_with("sha256:") {
        return Digest::parse(text).map(|_| None);
    }
    Ok(store.by_name(&Reference::parse(text)?.stored_name()))
}

/// The full form of a name, as the store has it: `busybox` becomes
/// `docker.io/library/busybox:latest`. `None` if it is not a reference.
pub fn normalize(text: &str) -> Option<String> {
    Reference::parse(text).ok().map(|reference| reference.stored_name())
}
