//! `docker cp` and `docker export`: paths of a container as tars, and tars into its directories.
//!
//! A container's files are as hostile as the tars that go into them, and it may run meanwhile. These
//! are the classes of vulnerabilities that other runtimes had here, and what prevents them:
//!
//! - Links that lead out of the container, also ones that appear between a check and its use
//!   (CVE-2018-15664): a path is resolved by openat2(2) below the descriptor of the container's
//!   root, in one step with opening it. From there on everything is relative to descriptors, and
//!   what could follow a link, such as chmod(2), is done to a descriptor as well (`node`).
//! - Code of the container that runs in the daemon (CVE-2019-14271): nothing here changes its root
//!   or starts a program, so no library of the container is ever loaded.
//! - Devices and FIFOs that do something when they are opened: only what is known to be a regular
//!   file or a directory is opened for reading (`berth_image::pack`).
//!
//! All functions block.

mod attributes;
mod content;
mod copy;
mod extract;
mod fingerprint;
mod metadata;
mod node;
mod pack;
mod path;
mod stat;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use berth_base::error::{Error, Kind};
use nix::errno::Errno;

pub use self::{
    copy::{CopyOptions, Place, copy, make_directory, names},
    extract::ExtractOptions,
    fingerprint::{fingerprint, sha256},
    stat::PathStat,
};

/// The files of a container, as its processes see them.
#[derive(Clone, Copy, Debug)]
pub struct ContainerFiles<'a> {
    /// Its root directory, with all mounts below it.
    root: BorrowedFd<'a>,
    /// What the user calls it, for errors.
    name: &'a str,
}

impl<'a> ContainerFiles<'a> {
    pub fn new(root: BorrowedFd<'a>, name: &'a str) -> Self {
        Self { root, name }
    }

    /// The error for a path that cannot be opened, in the words of dockerd.
    fn unreachable(&self, path: &str, errno: rustix::io::Errno) -> Error {
        match errno {
            rustix::io::Errno::NOENT => Error::not_found(format!(
                "Could not find the file {path} in container {}",
                self.name
            )),
            errno => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                let why = Errno::from_raw(errno.raw_os_error()).desc().to_lowercase();
                Error::new(Kind::Internal, format!("lstat {slash}{path}: {why}"))
            }
        }
    }
}
