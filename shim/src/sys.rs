//! Every syscall that neither std, nix nor rustix wraps: the only unsafe code of the workspace. One function, one syscall.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::unistd::Pid;

/// linux/sched.h; libc has it for glibc only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What clone3(2) returned.
pub(crate) enum Fork {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// clone3(2) as fork: `flags` are CLONE_NEW*, `cgroup` is a directory of the v2 tree that the child starts in.
///
/// With CLONE_PARENT the child is a sibling, and its parent hears of its end as it would of this process'.
pub(crate) fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: i32 = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = libc::clone_args {
        flags: flags as u64 | libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: without CLONE_VM the child gets a copy of this single-threaded process and goes on after the call, as with
    // fork(2); `args` and `pidfd` outlive the call.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        // SAFETY: the kernel put a new descriptor into `pidfd` because CLONE_PIDFD was given; nobody else owns it.
        pid => Ok(Fork::Parent { pid: Pid::from_raw(pid as i32), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// mount_setattr(2) on the mount that `fd` is; `attr_set` is MOUNT_ATTR_*, `propagation` is MS_*.
pub(crate) fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr_set: u64, propagation: u64) -> io::Result<()> {
    set_mount_attributes(fd, recursive, libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd: 0 })
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP: owners of files are seen through the user namespace `user`. For detached mounts.
pub(crate) fn idmap(fd: BorrowedFd<'_>, recursive: bool, user: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = user.as_raw_fd() as u64;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    set_mount_attributes(fd, recursive, attr)
}

fn set_mount_attributes(fd: BorrowedFd<'_>, recursive: bool, attr: libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let empty: &CStr = c"";
    // SAFETY: the path is a C string and `attr` a live struct of the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            empty.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC: nothing from `first` on survives the next execve.
pub(crate) fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: marking descriptors close-on-exec changes nothing that Rust relies on.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// close_range(2): closes all from `first` on. Only for a process that owns no descriptor any more.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: callers are at a point where no Rust value owns a descriptor from `first` on and that stays in use.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER with an array of `struct sock_filter` in native byte order.
pub(crate) fn load_seccomp(program: &[u8]) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|raw| libc::sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect();
    let length = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len: length, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `filter` points to `len` live instructions; the kernel copies and never writes them.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Brings up `lo` of the current network namespace with SIOCSIFFLAGS, netdevice(7).
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is plain old data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// dup2(2) onto standard descriptor `number` (0, 1 or 2), which std and libc never close.
pub(crate) fn replace_stdio(fd: impl AsFd, number: i32) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: the standard descriptors are owned by no Rust value.
    if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) } == number {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Default action for every signal that std ignores, and nothing blocked: execve(2) would hand both on.
pub(crate) fn default_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL installs no handler, and the mask is a local that sigemptyset initialises.
    let failed = unsafe {
        let mut none = std::mem::zeroed();
        libc::signal(libc::SIGPIPE, libc::SIG_DFL) == libc::SIG_ERR
            || libc::sigemptyset(&raw mut none) != 0
            || libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// pidfd_send_signal(2) with any number, real-time signals too.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The fields of `union bpf_attr` for BPF_PROG_LOAD that are needed; the kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct ProgramAttach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// bpf(2), numbers of linux/bpf.h.
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads an array of `struct bpf_insn` and attaches it to the directory of a cgroup, with which it goes.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    let license: &CStr = c"Apache-2.0";
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: (program.len() / 8) as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: `load` points to a live program of that length and to a C string; the kernel copies both and keeps no pointer.
    let loaded = match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<ProgramLoad>()) }
    {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: a new descriptor that nobody else owns.
        fd => unsafe { OwnedFd::from_raw_fd(fd as i32) },
    };
    let (target, program) = (cgroup.as_raw_fd() as u32, loaded.as_raw_fd() as u32);
    let attach = ProgramAttach { target, program, kind: BPF_CGROUP_DEVICE, flags: BPF_F_ALLOW_MULTI };
    // SAFETY: `attach` is a live struct of the size that is passed, its descriptors are open.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<ProgramAttach>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
