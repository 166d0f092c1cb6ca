//! What attachments are called.

/// The interface of a pod that Kubernetes looks at. Containers of the engine may have others.
pub(crate) const INTERFACE: &str = "eth0";

/// The name of an attachment: the id of its pod, and for other interfaces than the first `-` and
/// what they are called, which no id has.
pub(super) fn key(id: &str, interface: &str) -> String {
    match interface {
        INTERFACE => id.to_owned(),
        other => format!("{id}-{other}"),
    }
}

/// The pod and the interface of an attachment.
pub(super) fn parts(key: &str) -> (&str, &str) {
    key.split_once('-').unwrap_or((key, INTERFACE))
}
