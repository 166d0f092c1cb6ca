//! Processes that this one starts: what is said to and by them, and how long they are waited for.

pub(crate) mod channel;
pub(crate) mod child;
pub(crate) mod limits;
pub(crate) mod progress;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod socket;
pub(crate) mod successor;
pub(crate) mod wait;
