//! Finds images by the names that users and the kubelet give.

use std::sync::Arc;

use berth_base::error::{Error, Result};

use crate::{
    digest::{Digest, HEX_DIGITS},
    reference::Reference,
    store::{Image, Store},
};

/// Finds an image by tag or digest, id, or unique prefix of an id.
///
/// # Errors
/// `InvalidArgument` if `text` is neither an id nor a reference, or is the prefix of several ids.
pub(super) fn find(store: &Store, text: &str) -> Result<Option<Arc<Image>>> {
    if text.is_empty() {
        return Err(Error::invalid("no image was named"));
    }
    let has_algorithm = text.starts_with("sha256:");
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A whole id is nothing else.
    if has_algorithm || (is_hex && hex.len() == HEX_DIGITS) {
        return match store.by_id(text)? {
            None if has_algorithm => Digest::parse(text).map(|_| None),
            found => Ok(found),
        };
    }
    // Text such as `cafe` may be the name of a repository and the start of an id. The name wins, as
    // in containerd and dockerd: ids come and go, and nobody chooses them.
    if let Some(image) = store.by_name(&Reference::parse(text)?.stored_name()) {
        return Ok(Some(image));
    }
    match is_hex {
        true => store.by_id(text),
        false => Ok(None),
    }
}

/// The full form of a name, as the store has it: `busybox` becomes
/// `docker.io/library/busybox:latest`. `None` if it is not a reference.
pub fn normalize(text: &str) -> Option<String> {
    Reference::parse(text).ok().map(|reference| reference.stored_name())
}

/// The short form of a stored name, or of its repository: `busybox:latest`, `someone/tool:1`,
/// `quay.io/a/b@sha256:…`.
pub fn familiar(stored: &str) -> &str {
    let Some(of_hub) = stored.strip_prefix("docker.io/") else { return stored };
    of_hub.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(of_hub)
}
