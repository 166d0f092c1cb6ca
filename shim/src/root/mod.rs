//! The root filesystem of a container.

mod devices;
mod mount_points;
mod mounts;
mod overlay;
pub(crate) mod rootfs;
mod volumes;
