//! The bytes of containers on their way to and from clients.

pub mod detach;
pub mod frames;
pub mod logs;
pub(crate) mod session;
