//! What docker does with images beyond what the store knows: who uses them, what may be removed, and
//! what is told of it.

mod publish;
mod removal;
mod remove;
mod users;

pub(crate) use self::remove::{Removed, remove};
