//! Checks the signatures that an image must have before it is unpacked.
//!
//! `policy` decides which signatures are required, `cosign` fetches and verifies them.

mod cosign;
mod policy;

pub(super) use self::policy::check;
