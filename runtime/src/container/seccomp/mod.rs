//! Seccomp profiles: the default one, and those of files. The default profile's answer is "no" (EPERM), and "no such call" (ENOSYS)
//! for numbers newer than this list, so that libraries fall back as on an old kernel. What is allowed follows the capabilities that
//! are granted, as in Docker's and containerd's profiles.

mod bpf;

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::security::bit;
use crate::error::{Error, Result};
use anyhow::Context;
use berth_shim::spec::Capabilities;
use bpf::{ALLOW, ARCHES, Arch, Condition, ENOSYS, ERRNO, Policy, Rule};
use serde::{Deserialize, Serialize};

/// Everybody may: what works on the caller's own files, memory, processes, sockets and time.
const ALLOWED: &str = "accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown \
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve \
    execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat \
    fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue \
    futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid \
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set \
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore \
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open \
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv \
    preadv2 prlimit64 process_mrelease pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom \
    recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg \
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority \
    setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown \
    sigaltstack signalfd signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs \
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime \
    timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid \
    write writev process_vm_readv process_vm_writev";

/// The same for 32-bit programs, whose tables have more than one of a kind.
const ALLOWED_32: &str = "_llseek _newselect arm_fadvise64_64 breakpoint cacheflush chown32 clock_adjtime64 clock_getres_time64 \
    clock_gettime64 clock_nanosleep_time64 fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 \
    getegid32 geteuid32 getgid32 getgroups32 getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 \
    mq_timedreceive_time64 mq_timedsend_time64 nice oldfstat oldlstat oldolduname oldstat olduname ppoll_time64 pselect6_time64 \
    readdir recv recvmmsg_time64 rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 send sendfile64 set_tls \
    setfsgid32 setfsuid32 setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sgetmask sigaction signal \
    sigpending sigprocmask sigreturn sigsuspend socketcall ssetmask stat64 statfs64 sync_file_range2 time64 timer_gettime64 \
    timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit utimensat_time64 waitpid";

/// Allowed with a capability, because without it the kernel refuses anyway or the call is a way to gain it.
const BY_CAPABILITY: [(&str, &str); 13] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday clock_settime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
];

/// personality(2): Linux, 32-bit addresses, and the question what it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Sockets to the hypervisor's other guests are nobody's business in a container.
const AF_VSOCK: u64 = 40;
/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: new namespaces need CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const EPERM: u32 = 1;
/// The largest profile that is read; Docker's own has 20 KiB.
const MAX_PROFILE: u64 = 1 << 20;

/// Of the OCI runtime specification, config-linux, "Seccomp".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A profile in the two forms that somebody loads.
#[derive(Debug)]
pub(super) enum Filter {
    /// `struct sock_filter[]`, for the shim.
    Program(Arc<[u8]>),
    /// `linux.seccomp` of the OCI runtime specification, for another runtime.
    Profile(Vec<u8>),
}

/// Programs by what they were compiled from: most containers of a node have one of a few.
static COMPILED: Mutex<BTreeMap<Key, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
/// As many are kept.
const MAX_COMPILED: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// The default, for these capabilities.
    Default(u64),
    /// The text of a profile.
    Text(String),
}

fn cached(key: Key, compile: impl FnOnce() -> Result<Vec<u8>>) -> Result<Filter> {
    let compiled = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = compiled().get(&key) {
        return Ok(Filter::Program(program.clone()));
    }
    let program: Arc<[u8]> = compile()?.into();
    let mut all = compiled();
    if all.len() >= MAX_COMPILED {
        all.clear();
    }
    all.insert(key, program.clone());
    Ok(Filter::Program(program))
}

/// The default filter, for a process with these capabilities.
pub(super) fn default_profile(capabilities: Capabilities, oci: bool) -> Result<Filter> {
    if oci {
        let profile = serde_json::to_vec(&default(capabilities)?).context("write the default seccomp profile")?;
        return Ok(Filter::Profile(profile));
    }
    cached(Key::Default(capabilities.granted), || {
        let profile = default(capabilities)?;
        // Programs fall back, as on an old kernel, from calls that are newer than the list.
        let policy = Policy { unknown: ERRNO | ENOSYS, ..profile.policy()? };
        Ok(bpf::bytes(&bpf::compile(&policy, &profile.arches())?))
    })
}

/// The filter of a profile in OCI's JSON.
///
/// # Errors
/// `InvalidArgument`: not a regular file, larger than 1 MiB, not a profile, or one that this machine cannot enforce.
pub(super) fn local_profile(path: &Path, oci: bool) -> Result<Filter> {
    let wrong = |what: String| Error::invalid(format!("seccomp profile {}: {what}", path.display()));
    let read = || -> std::io::Result<Option<String>> {
        // A FIFO in its place must not hang the daemon.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        let mut text = String::new();
        let readable = metadata.is_file() && metadata.len() <= MAX_PROFILE;
        if readable {
            file.take(MAX_PROFILE).read_to_string(&mut text)?;
        }
        Ok(readable.then_some(text))
    };
    let text = read().map_err(|error| wrong(error.to_string()))?;
    let text = text.ok_or_else(|| wrong("not a regular file of at most 1 MiB".to_owned()))?;
    let program = cached(Key::Text(text.clone()), || {
        let profile: Profile = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let compiled = profile.policy().and_then(|policy| bpf::compile(&policy, &profile.arches()));
        Ok(bpf::bytes(&compiled.map_err(|error| wrong(error.message))?))
    })?;
    Ok(if oci { Filter::Profile(text.into_bytes()) } else { program })
}

/// `linux.seccomp` of the OCI runtime specification. Architectures that it does not name, but for the machine's own, are answered with
/// ENOSYS.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    syscalls: Vec<ProfileRule>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRule {
    names: Vec<String>,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<ProfileCondition>,
}

impl ProfileRule {
    fn allow(names: Vec<String>) -> Self {
        Self { names, action: Action::Allow, errno_ret: None, args: Vec::new() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileCondition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

impl Action {
    /// Of linux/seccomp.h; an error number that is not given is EPERM.
    fn answer(self, errno: Option<u32>) -> u32 {
        let data = errno.unwrap_or(EPERM) & 0xffff;
        match self {
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
            Self::Trap => 0x0003_0000,
            Self::Errno => ERRNO | data,
            Self::Trace => 0x7ff0_0000 | data,
            Self::Log => 0x7ffc_0000,
            Self::Allow => ALLOW,
        }
    }
}

impl Profile {
    fn arches(&self) -> Vec<&'static Arch> {
        let named = |arch: &Arch| self.architectures.iter().any(|name| name == arch.name);
        ARCHES.iter().enumerate().filter(|(index, arch)| *index == 0 || named(arch)).map(|(_, arch)| arch).collect()
    }

    fn policy(&self) -> Result<Policy> {
        let default = self.default_action.answer(self.default_errno_ret);
        let mut rules = Vec::new();
        for rule in &self.syscalls {
            let condition = |given: &ProfileCondition| match given.index {
                0..=5 => Ok(Condition {
                    argument: given.index,
                    operator: given.op,
                    value: given.value,
                    masked: given.value_two,
                }),
                index => Err(Error::invalid(format!("a system call has no argument {index}"))),
            };
            let conditions = rule.args.iter().map(condition).collect::<Result<_>>()?;
            rules.push(Rule { names: rule.names.clone(), conditions, answer: rule.action.answer(rule.errno_ret) });
        }
        Ok(Policy { default, unknown: default, rules })
    }
}

/// The default profile for a process with these capabilities.
fn default(capabilities: Capabilities) -> Result<Profile> {
    let names = |names: &str| names.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut allowed = [names(ALLOWED), names(ALLOWED_32)].concat();
    for (capability, calls) in BY_CAPABILITY {
        if capabilities.granted & bit(capability)? != 0 {
            allowed.extend(names(calls));
        }
    }
    let allow = |name: &str, op, value, value_two| ProfileRule {
        args: vec![ProfileCondition { index: 0, value, value_two, op }],
        ..ProfileRule::allow(names(name))
    };
    let mut syscalls = vec![allow("socket", Operator::NotEqual, AF_VSOCK, 0)];
    syscalls.extend(PERSONALITIES.map(|value| allow("personality", Operator::Equal, value, 0)));
    if !allowed.iter().any(|name| name == "clone") {
        syscalls.push(allow("clone", Operator::MaskedEqual, CLONE_NAMESPACES, 0));
        // Its flags are behind a pointer: with ENOSYS the C library falls back to clone.
        let (action, errno_ret) = (Action::Errno, Some(ENOSYS));
        syscalls.push(ProfileRule { action, errno_ret, ..ProfileRule::allow(names("clone3")) });
    }
    syscalls.push(ProfileRule::allow(allowed));
    let architectures = ARCHES.iter().map(|arch| arch.name.to_owned()).collect();
    Ok(Profile { default_action: Action::Errno, default_errno_ret: Some(EPERM), architectures, syscalls })
}

#[cfg(test)]
mod tests {
    use super::{
        bpf::{X32, compile, tests::run},
        *,
    };

    use syscalls::Sysno;

    fn id(sysno: Sysno) -> u32 {
        sysno.id() as u32
    }

    #[test]
    fn the_default_follows_the_capabilities() {
        let program = |capabilities| {
            let policy = default(capabilities).unwrap().policy().unwrap();
            compile(&Policy { unknown: ERRNO | ENOSYS, ..policy }, &ARCHES.each_ref()).unwrap()
        };
        let plain = program(Capabilities::default());
        let admin = Capabilities { granted: bit("SYS_ADMIN").unwrap(), ambient: 0 };
        let admin = program(admin);
        let (no, missing) = (ERRNO | EPERM, ERRNO | ENOSYS);
        for (number, argument, for_plain, for_admin) in [
            (id(Sysno::read), 0, ALLOW, ALLOW),
            (id(Sysno::mount), 0, no, ALLOW),
            (id(Sysno::unshare), 0, no, ALLOW),
            (id(Sysno::clone), 0x11, ALLOW, ALLOW),
            (id(Sysno::clone), 0x1000_0011, no, ALLOW),
            (id(Sysno::clone), 0x0002_0000, no, ALLOW),
            (id(Sysno::clone3), 0, missing, ALLOW),
            (id(Sysno::keyctl), 0, no, no),
            (id(Sysno::io_uring_setup), 0, no, no),
            (id(Sysno::socket), 2, ALLOW, ALLOW),
            (id(Sysno::socket), AF_VSOCK, no, no),
            (id(Sysno::personality), 0x8, ALLOW, ALLOW),
            (id(Sysno::personality), 0xffff_ffff, ALLOW, ALLOW),
            (id(Sysno::personality), 0x4_0000, no, no),
            (5000, 0, missing, missing),
            (X32 | 1, 0, missing, missing),
        ] {
            let arguments = [argument, 0, 0, 0, 0, 0];
            assert_eq!(run(&plain, number, arguments, ARCHES[0].audit), for_plain, "{number} {argument:#x}");
            assert_eq!(run(&admin, number, arguments, ARCHES[0].audit), for_admin, "{number} {argument:#x}");
        }
        // 32-bit programs, by their own table, and nobody by another machine's.
        let call = |name: &str, argument| {
            run(&plain, (ARCHES[1].number)(name).unwrap(), [argument, 0, 0, 0, 0, 0], ARCHES[1].audit)
        };
        assert_eq!((call("mmap2", 0), call("mount", 0), call("clone", 0x1000_0011)), (ALLOW, no, no));
        assert_eq!((call("fcntl64", 0), call("socket", AF_VSOCK)), (ALLOW, no));
        assert_eq!(run(&plain, id(Sysno::read), [0; 6], 0x4000_0015), missing);
    }

    #[test]
    fn every_operator_compares_64_bits() {
        let big = 5 << 32 | 7;
        for (op, holds) in [
            ("EQ", &(|value: u64| value == big) as &dyn Fn(u64) -> bool),
            ("NE", &|value| value != big),
            ("LT", &|value| value < big),
            ("LE", &|value| value <= big),
            ("GT", &|value| value > big),
            ("GE", &|value| value >= big),
            ("MASKED_EQ", &|value| value & big == 4 << 32 | 2),
        ] {
            let arg = format!(r#"{{"index":2,"value":{big},"valueTwo":{},"op":"SCMP_CMP_{op}"}}"#, 4_u64 << 32 | 2);
            let rule = format!(r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{arg}]}}"#);
            let text = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13,"syscalls":[{rule}]}}"#);
            let profile: Profile = serde_json::from_str(&text).unwrap();
            let program = compile(&profile.policy().unwrap(), &profile.arches()).unwrap();
            for high in [0_u64, 4, 5, 6, u64::from(u32::MAX)] {
                for low in [0_u64, 2, 6, 7, 8, u64::from(u32::MAX)] {
                    let value = high << 32 | low;
                    let expected = if holds(value) { ALLOW } else { ERRNO | 13 };
                    assert_eq!(
                        run(&program, id(Sysno::read), [0, 0, value, 0, 0, 0], ARCHES[0].audit),
                        expected,
                        "{op} {value:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn rules_of_one_call_are_tried_in_their_order_and_all_conditions_must_hold() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":9,"op":"SCMP_CMP_GE"}]},
            {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":3,"args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]},
            {"names":["sethostname","no_such_call"],"action":"SCMP_ACT_ERRNO"}]}"#;
        let profile: Profile = serde_json::from_str(text).unwrap();
        let program = compile(&profile.policy().unwrap(), &profile.arches()).unwrap();
        let kill = |a, b| run(&program, id(Sysno::kill), [a, b, 0, 0, 0, 0], ARCHES[0].audit);
        assert_eq!((kill(1, 9), kill(1, 8), kill(2, 9), kill(3, 9)), (0x8000_0000, ALLOW, ERRNO | 3, ALLOW));
        assert_eq!(run(&program, id(Sysno::sethostname), [0; 6], ARCHES[0].audit), ERRNO | EPERM);
        assert_eq!(run(&program, id(Sysno::read), [0; 6], ARCHES[0].audit), ALLOW);
    }

    #[test]
    fn files_that_are_no_profiles_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        for text in ["", "{", "{}", r#"{"defaultAction":"SCMP_ACT_DANCE"}"#] {
            std::fs::write(&path, text).unwrap();
            assert!(local_profile(&path, false).unwrap_err().message.contains("profile.json"), "{text:?}");
        }
        std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(matches!(local_profile(&path, false).unwrap(), Filter::Program(bytes) if bytes.len() % 8 == 0));
        assert!(matches!(local_profile(&path, true).unwrap(), Filter::Profile(text) if text.starts_with(b"{")));
        assert!(local_profile(directory.path(), false).is_err());
        assert!(local_profile(Path::new("/no/such/file"), false).is_err());
    }
}
