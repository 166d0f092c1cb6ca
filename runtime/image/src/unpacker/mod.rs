//! Unpacks each layer in a process of its own, which can do nothing else.
//!
//! ```text
//! daemon                                     berthd unpack
//!   Source --> sha256 of the blob --pipe 0-->  confine itself, then `unpack`
//!   report <---------------------pipe 1------  digest of the tar, usage, what remains to be done
//!   finish: opaque directories, devices
//! ```
//!
//! Decompressors and tar readers are where image tools have been attacked most. What takes over
//! this process has an empty directory for a root, five capabilities over the files in it, no
//! network, and few system calls (`confine`). When it ends, however it ends, its memory goes with it.
//!
//! The digest of the blob is the daemon's own, and that of the tar is the word of this process. One
//! that was taken over could store its files under the diff-id of another layer, for images that
//! have that layer too; `berthd images check` would find it.
//!
//! The process is another copy of the daemon's executable, `/proc/self/exe`: a package upgrade does
//! not change that.

mod child;
mod confine;
mod finish;
mod process;
mod report;

pub use self::child::unpack_if_asked;
#[cfg(fuzzing)]
pub(super) use self::finish::finish;
pub(super) use self::process::Unpacker;
