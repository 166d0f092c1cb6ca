//! Images on disk.
//!
//! ```text
//! images/index.json          names -> manifests; replaced by one rename for every change
//! images/blobs/sha256/<hex>  manifests and configs, as in an OCI image layout
//! images/pulls/<hex>.json    resume states of pulls in progress
//! images/partial/<hex>       partially downloaded blobs
//! layers/<key>/              one unpacked layer each
//! ```
//!
//! Nothing is synced before PullImage returns; `durability` explains what a power loss means then.
//! Where both locks are needed, that of the index is taken before that of the layers.

mod disk;
mod durability;
mod entries;
mod incomplete;
mod index;
mod layers;
mod layout;
mod partial;
mod resume;

pub use self::{
    disk::Disk,
    index::{Image, Names},
    layers::{Holder, Lease},
    layout::StoreLayout,
};
pub(super) use self::{
    entries::{Nameless, Origin},
    index::{NewImage, Store},
    layers::{Collected, Layers},
    partial::PartialBlob,
    resume::{Attempt, ResumeStates},
};
