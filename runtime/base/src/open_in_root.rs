//! Opens paths below a directory that an image or a container has filled, as if that directory were
//! the whole filesystem: no symbolic link and no `..` leads out of it, at any time (CVE-2018-15664,
//! CVE-2021-32760, CVE-2025-47290).

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

/// How long to retry. One attempt takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// openat2(2) with RESOLVE_IN_ROOT. An empty path is the root itself. The descriptor is closed on
/// exec.
///
/// # Errors
/// The kernel's own.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // No magic links: a link to /proc/self/fd/N must not reach a descriptor of the daemon.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let begun = Instant::now();
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // If any rename or mount on the machine happens at the same time, the kernel cannot
            // guarantee that `..` did not escape the root, and fails with EAGAIN (openat2(2),
            // "ERRORS"). Links in images often contain `..`, so this is common on a busy node. It
            // says nothing about this path, and the man page advises to retry.
            Err(Errno::AGAIN) if begun.elapsed() < PATIENCE => {}
            result => return result,
        }
    }
}
