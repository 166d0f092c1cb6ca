//! The terminal of a container's first process.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use berth_shim::spec::Window;
use rustix::{
    fs::{OFlags, ResolveFlags},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    error::{Result, Step},
    mount::{
        api::{attach, clone_tree},
        inside::{open_below, open_root},
        target::ensure_file,
    },
    process::channel::{self, Message},
    stdio::child::take_terminal,
};

/// Makes a pty of this size in the container's own devpts, sends the master end to the parent, and
/// makes the slave end the standard streams of this process.
///
/// The slave is opened by TIOCGPTPEER (ioctl_tty(2)) and never by its path, which a container could
/// have replaced (CVE-2025-52565).
pub(super) fn open(channel: BorrowedFd<'_>, window: Option<Window>) -> Result<()> {
    let root = open_root()?;
    // /dev may be a volume, in which others can make links at any time.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let path = Path::new("/dev/pts/ptmx");
    let master = open_below(root.as_fd(), path, flags, resolve).step_on("open", path)?;
    // The slave end of a new pty cannot be opened before that (pts(4)).
    unlockpt(&master).step("unlockpt")?;
    let slave =
        ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .step("TIOCGPTPEER")?;
    if let Some(Window { rows, columns }) = window {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).step("resize the terminal")?;
    }
    // /dev/console is the container's terminal ("Default Devices" of the OCI runtime
    // specification): a bind of the slave itself.
    let console = ensure_file(root.as_fd(), Path::new("/dev/console"))?;
    let bind = clone_tree(slave.as_fd(), false).step_on("clone mount for", "/dev/console")?;
    attach(bind.as_fd(), console.as_fd()).step_on("mount on", "/dev/console")?;
    channel::send(channel, &Message::Terminal, Some(master.as_fd()));
    take_terminal(slave)
}
