//! The root filesystem of a container.

mod devices;
mod mounts;
mod overlay;
pub(crate) mod rootfs;
mod volumes;
