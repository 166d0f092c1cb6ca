//! The system calls that neither std nor nix nor rustix wraps, or not as they are needed here: the
//! only unsafe code of the workspace. One function, one system call.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{sys::signal::SigSet, unistd::Pid};

/// From linux/sched.h: libc defines it for glibc only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// On which side of clone3(2) this process is.
pub(crate) enum Fork {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// clone3(2) as a fork. `flags` are CLONE_NEW*; `cgroup` is the directory of the v2 tree in which
/// the child starts.
pub(crate) fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: i32 = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = libc::clone_args {
        flags: flags as u64 | libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: without CLONE_VM the child gets a copy of this single-threaded process and goes on
    // after the call, as with fork(2); `args` and `pidfd` outlive the call.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => {
            // SAFETY: the kernel put a new descriptor into `pidfd` because CLONE_PIDFD was given;
            // nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent { pid: Pid::from_raw(pid as i32), pidfd })
        }
    }
}

/// A page shared by a process, its parent and its sibling, in which the parent finds the number of
/// the sibling that has taken the process' place.
///
/// The kernel writes it before the sibling can run (clone(2), CLONE_PARENT_SETTID), as a number of
/// the PID namespace that the forking process is in, which is the parent's. With a message instead,
/// the parent could learn that a child has ended before it knows what that child was.
pub(crate) struct Successor {
    pid: NonNull<AtomicI32>,
}

impl Successor {
    /// Makes the page. To be called in the parent, before it forks.
    pub(crate) fn new() -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), size_of::<AtomicI32>(), protection, flags, -1, 0)
        };
        match NonNull::new(address.cast()) {
            Some(pid) if address != libc::MAP_FAILED => Ok(Self { pid }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The sibling, once there is one.
    pub(crate) fn pid(&self) -> Option<Pid> {
        // SAFETY: the mapping lives as long as `self`, is aligned to a page, and was zero when it
        // was made.
        let pid = unsafe { self.pid.as_ref() }.load(Ordering::Acquire);
        (pid > 0).then(|| Pid::from_raw(pid))
    }

    /// Keeps the page from all later children of this process. To be called on both sides of the
    /// first fork: a container that has taken over a child could write any number to it, and have
    /// the parent signal that process.
    pub(crate) fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the mapping is `self`'s, and stays as it is in this process.
        match unsafe {
            libc::madvise(self.pid.as_ptr().cast(), size_of::<AtomicI32>(), libc::MADV_DONTFORK)
        } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Forks a sibling of this process. Returns true in the sibling, and false in this process,
    /// which has nothing left to do but to exit. `flags` are CLONE_NEW*; for `pass` see
    /// `seccomp::Pass`.
    pub(crate) fn fork(&self, flags: i32, pass: u64) -> io::Result<bool> {
        let args = libc::clone_args {
            flags: (flags | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID) as u64,
            pidfd: 0,
            child_tid: 0,
            parent_tid: self.pid.as_ptr() as u64,
            // With CLONE_PARENT the kernel takes the signal of this process, and wants none here.
            exit_signal: 0,
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: 0,
        };
        // SAFETY: as in `clone3`; `parent_tid` is that of a living mapping.
        match unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const args,
                size_of::<libc::clone_args>(),
                0,
                0,
                0,
                pass,
            )
        } {
            -1 => Err(io::Error::last_os_error()),
            pid => Ok(pid == 0),
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // SAFETY: nobody else has a reference into this process' mapping.
        unsafe { libc::munmap(self.pid.as_ptr().cast(), size_of::<AtomicI32>()) };
    }
}

/// A fork that a seccomp filter lets through: the child's id, or `None` in the child. For `pass` see
/// `seccomp::Pass`.
pub(crate) fn fork(pass: u64) -> io::Result<Option<Pid>> {
    let args = libc::clone_args {
        flags: 0,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    let size = size_of::<libc::clone_args>();
    // SAFETY: as in `clone3`.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size, 0, 0, 0, pass) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as i32))),
    }
}

/// Waits for any signal, all of which are blocked: sigwaitinfo(2). nix knows no real-time signals.
pub(crate) fn wait_for_signal() -> io::Result<i32> {
    let all = SigSet::all();
    // SAFETY: the set lives as long as the call, which asks for no more information.
    match unsafe { libc::sigwaitinfo(all.as_ref(), std::ptr::null_mut()) } {
        -1 => Err(io::Error::last_os_error()),
        signal => Ok(signal),
    }
}

/// kill(2) with any signal.
pub(crate) fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::kill(pid.as_raw(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// setsid(2). For `pass` see `seccomp::Pass`.
pub(crate) fn setsid(pass: u64) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::syscall(libc::SYS_setsid, 0, 0, 0, 0, 0, pass) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes standard input the controlling terminal of this process: TIOCSCTTY (ioctl_tty(2)). For
/// `pass` see `seccomp::Pass`.
pub(crate) fn take_controlling_terminal(pass: u64) -> io::Result<()> {
    // SAFETY: the argument of TIOCSCTTY is a number.
    match unsafe { libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSCTTY, 0, 0, 0, pass) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A random number from getrandom(2).
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0; size_of::<u64>()];
    // SAFETY: at most that many bytes are written. So few come at once, and are not interrupted:
    // getrandom(2).
    match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(u64::from_ne_bytes(bytes)),
    }
}

/// Joins a new and empty session keyring: KEYCTL_JOIN_SESSION_KEYRING (keyctl(2)) without a name.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    keyctl(libc::KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
}

/// Takes all permissions of the session keyring from processes that only have the same uid, and
/// leaves them to those that possess it: KEYCTL_SETPERM (keyctl(2), keyrings(7)).
pub(crate) fn close_session_keyring() -> io::Result<()> {
    const POSSESSOR_ALL: libc::c_ulong = 0x3f00_0000;
    keyctl(libc::KEYCTL_SETPERM, libc::KEY_SPEC_SESSION_KEYRING as libc::c_ulong, POSSESSOR_ALL)
}

fn keyctl(operation: u32, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both operations above take numbers only; a name that is null is none.
    match unsafe { libc::syscall(libc::SYS_keyctl, operation, first, second, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// mount_setattr(2) on the mount `fd`. `attr_set` is MOUNT_ATTR_*; `propagation` is MS_*, or 0.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attr_set: u64,
    propagation: u64,
) -> io::Result<()> {
    set_mount_attributes(
        fd,
        recursive,
        libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd: 0 },
    )
}

/// Shows the owners of files in the mount `fd`, which has to be detached, through the user
/// namespace `user`: mount_setattr(2) with MOUNT_ATTR_IDMAP.
pub(crate) fn idmap(fd: BorrowedFd<'_>, recursive: bool, user: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = user.as_raw_fd() as u64;
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd,
    };
    set_mount_attributes(fd, recursive, attr)
}

fn set_mount_attributes(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attr: libc::mount_attr,
) -> io::Result<()> {
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

/// Closes all descriptors from `first` on (close_range(2)). Only for a process in which no Rust
/// value that is still used owns one of them.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX)
}

/// Closes all descriptors but the standard ones and `kept`. Only for a process in which no Rust
/// value that is still used owns another one.
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd() as u32;
    if kept > 3 {
        close_range(3, kept - 1)?;
    }
    close_from(kept + 1)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: callers are at a point where no Rust value owns a descriptor of these that stays in
    // use.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Loads a seccomp filter, an array of `struct sock_filter` in native byte order: seccomp(2) with
/// SECCOMP_SET_MODE_FILTER.
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
    let length = u16::try_from(instructions.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len: length, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `filter` points to `len` live instructions; the kernel copies and never writes them.
    match unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets what proc_pid_cmdline(5) shows of this process.
///
/// The name is written over the arguments, since it takes CAP_SYS_RESOURCE to let the kernel look
/// elsewhere (PR_SET_MM_ARG_START). If the last byte of the arguments is not zero, the kernel takes
/// them for one string that ends at the first zero (`get_mm_cmdline` in fs/proc/base.c).
///
/// # Errors
/// Also if the process was started with shorter arguments.
pub(crate) fn set_command_line(name: &CStr) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // arg_start and arg_end of proc_pid_stat(5), counted after the command name, which may hold
    // anything.
    let mut fields = stat
        .rsplit_once(')')
        .into_iter()
        .flat_map(|(_, fields)| fields.split_ascii_whitespace().skip(45));
    let mut address = || {
        fields.next().and_then(|field| field.parse::<usize>().ok()).filter(|address| *address != 0)
    };
    let (Some(start), Some(end)) = (address(), address()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (name, length) = (name.to_bytes_with_nul(), end.saturating_sub(start));
    if length <= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel put the strings of argv there, writable and for as long as the process
    // lives. They stay strings: the zero that ends the last of them is that of the environment's
    // first, or of the program's name behind it.
    unsafe {
        let arguments = std::slice::from_raw_parts_mut(start as *mut u8, length);
        arguments.fill(0);
        arguments[..name.len()].copy_from_slice(name);
        arguments[length - 1] = b' ';
    }
    Ok(())
}

/// Brings up `lo` of the current network namespace: SIOCSIFFLAGS (netdevice(7)).
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

/// Puts `fd` in the place of the standard descriptor `number`: 0, 1 or 2 (dup2(2)).
pub(crate) fn replace_stdio(fd: impl AsFd, number: i32) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: the standard descriptors are owned by no Rust value.
    if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) } == number {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the default action for SIGPIPE, which Rust's std ignores, and blocks no signal. Programs
/// would inherit both over execve(2).
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

/// pidfd_send_signal(2) with any signal number: nix has no real-time signals.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD (bpf(2)). The kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The beginning of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct ProgramAttach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Numbers from linux/bpf.h.
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads an eBPF program, an array of `struct bpf_insn`, and attaches it to the directory of a
/// cgroup. The program goes with the cgroup.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    let license: &CStr = c"Apache-2.0";
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: (program.len() / 8) as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: `load` points to a live program of that length and to a C string; the kernel copies
    // both and keeps no pointer.
    let loaded = match unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<ProgramLoad>())
    } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: a new descriptor that nobody else owns.
        fd => unsafe { OwnedFd::from_raw_fd(fd as i32) },
    };
    let (target, program) = (cgroup.as_raw_fd() as u32, loaded.as_raw_fd() as u32);
    let attach =
        ProgramAttach { target, program, kind: BPF_CGROUP_DEVICE, flags: BPF_F_ALLOW_MULTI };
    // SAFETY: `attach` is a live struct of the size that is passed, its descriptors are open.
    match unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<ProgramAttach>())
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
