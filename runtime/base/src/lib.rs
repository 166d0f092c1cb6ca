//! What every part of the daemon needs, and what names none of them.

pub mod accept;
pub mod blocking;
pub mod chunks;
pub mod clock;
pub mod config;
pub mod error;
pub mod id;
pub mod layout;
pub mod observe;
pub mod open_in_root;
pub mod reserve;
pub mod sealed;
pub mod singleflight;
pub mod socket;
pub mod trash;
