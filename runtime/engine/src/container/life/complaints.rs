//! What is tried again and again says why it fails once, and not once a minute for ever.

use crate::container::object::Container;

/// The failures of something that is tried until it succeeds.
pub(super) struct Complaints<'a> {
    container: &'a Container,
    /// What is tried.
    what: &'static str,
    /// Why it failed the last time.
    last: Option<String>,
}

impl<'a> Complaints<'a> {
    pub(super) fn of(container: &'a Container, what: &'static str) -> Self {
        Self { container, what, last: None }
    }

    /// Logs a failure: at WARN if it is the first, or has another cause than the one before.
    pub(super) fn hear(&mut self, why: String) {
        let Self { container, what, last } = self;
        match last.as_ref() == Some(&why) {
            true => tracing::debug!(container = container.id, "{what}: {why}"),
            false => tracing::warn!(
                container = container.id,
                "{what}: {why} (the same is not said again at this level)"
            ),
        }
        *last = Some(why);
    }
}
