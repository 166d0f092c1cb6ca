//! Seccomp profiles, compiled to BPF: the default one, and those of files. The default profile's answer is "no" (EPERM), and "no such call" (ENOSYS) for numbers newer than this
//! list, so that libraries fall back as on an old kernel. What is allowed follows the capabilities that are granted, as in
//! Docker's and containerd's profiles.

use std::{collections::BTreeMap, fs::OpenOptions, io::Read, os::unix::fs::OpenOptionsExt, path::Path, str::FromStr};

use berth_shim::spec::Capabilities;
use serde::Deserialize;
use syscalls::Sysno;

use super::security::bit;
use crate::error::{Error, Result};

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
const ENOSYS: u32 = 38;
/// The largest profile that is read; Docker's own has 20 KiB.
const MAX_PROFILE: u64 = 1 << 20;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// x86-64's second table of calls, which has seen more bugs than users.
const X32: u32 = 0x4000_0000;

// classic BPF (linux/bpf_common.h) and seccomp's answers (linux/seccomp.h)
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// The kernel's limit (BPF_MAXINSNS).
const MAX_PROGRAM: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    value: u32,
}

/// What a filter is compiled from: the first rule whose conditions all hold answers for a call, else the default.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    default: u32,
    /// For calls that are newer than every name known here.
    unknown: u32,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    numbers: Vec<u32>,
    conditions: Vec<Condition>,
    answer: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// 0 to 5.
    argument: u32,
    operator: Operator,
    value: u64,
    /// What is compared with, where `value` is a mask.
    masked: u64,
}

/// Of the OCI runtime specification, config-linux, "Seccomp".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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

/// The default filter as `struct sock_filter[]`, for a process with these capabilities.
pub(super) fn default_profile(capabilities: Capabilities) -> Result<Vec<u8>> {
    Ok(bytes(&compile(&default_policy(capabilities)?)?))
}

/// The filter of a profile in OCI's JSON.
///
/// # Errors
/// `InvalidArgument`: not a regular file, larger than 1 MiB, not a profile, or one that this machine cannot enforce.
pub(super) fn local_profile(path: &Path) -> Result<Vec<u8>> {
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
    let profile: Profile = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    profile
        .policy()
        .and_then(|policy| compile(&policy))
        .map(|program| bytes(&program))
        .map_err(|error| wrong(error.message))
}

/// `linux.seccomp` of the OCI runtime specification. Architectures other than the machine's own are answered with ENOSYS.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<ProfileRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRule {
    names: Vec<String>,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<ProfileCondition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileCondition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
    fn policy(self) -> Result<Policy> {
        let default = self.default_action.answer(self.default_errno_ret);
        let mut rules = Vec::new();
        for rule in self.syscalls {
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
            rules.push(Rule {
                numbers: numbers(&rule.names.join(" ")).collect(),
                conditions,
                answer: rule.action.answer(rule.errno_ret),
            });
        }
        Ok(Policy { default, unknown: default, rules })
    }
}

fn bytes(program: &[Instruction]) -> Vec<u8> {
    let bytes = |i: &Instruction| {
        let [a, b] = i.code.to_ne_bytes();
        let [c, d, e, f] = i.value.to_ne_bytes();
        [a, b, i.on_true, i.on_false, c, d, e, f]
    };
    program.iter().flat_map(bytes).collect()
}

/// Numbers of names; what this architecture does not have is left out.
fn numbers(names: &str) -> impl Iterator<Item = u32> {
    names.split_ascii_whitespace().filter_map(|name| Sysno::from_str(name).ok()).map(|number| number.id() as u32)
}

fn default_policy(capabilities: Capabilities) -> Result<Policy> {
    let mut allowed: Vec<u32> = numbers(ALLOWED).collect();
    for (capability, names) in BY_CAPABILITY {
        if capabilities.granted & bit(capability)? != 0 {
            allowed.extend(numbers(names));
        }
    }
    let when = |sysno: Sysno, operator, value, masked, answer| {
        let conditions = vec![Condition { argument: 0, operator, value, masked }];
        Rule { numbers: vec![sysno.id() as u32], conditions, answer }
    };
    let mut rules = vec![when(Sysno::socket, Operator::NotEqual, AF_VSOCK, 0, ALLOW)];
    rules.extend(PERSONALITIES.map(|value| when(Sysno::personality, Operator::Equal, value, 0, ALLOW)));
    if !allowed.contains(&(Sysno::clone.id() as u32)) {
        rules.push(when(Sysno::clone, Operator::MaskedEqual, CLONE_NAMESPACES, 0, ALLOW));
        // Its flags are behind a pointer: with ENOSYS the C library falls back to clone.
        rules.push(Rule { numbers: vec![Sysno::clone3.id() as u32], conditions: Vec::new(), answer: ERRNO | ENOSYS });
    }
    rules.push(Rule { numbers: allowed, conditions: Vec::new(), answer: ALLOW });
    Ok(Policy { default: ERRNO | EPERM, unknown: ERRNO | ENOSYS, rules })
}

fn one(code: u16, value: u32) -> Instruction {
    Instruction { code, on_true: 0, on_false: 0, value }
}

fn jump(code: u16, value: u32, on_true: usize, on_false: usize) -> Instruction {
    // Distances here are of single conditions; what is longer goes by JUMP.
    Instruction { code, on_true: on_true as u8, on_false: on_false as u8, value }
}

fn compile(policy: &Policy) -> Result<Vec<Instruction>> {
    let newest = Sysno::iter().map(|number| number.id() as u32).max().unwrap_or(0);
    let foreign = one(RETURN, ERRNO | ENOSYS);
    let mut program = vec![one(LOAD, ARCH), jump(JUMP_EQUAL, AUDIT_ARCH, 1, 0), foreign, one(LOAD, NUMBER)];
    program.extend([jump(JUMP_GREATER_OR_EQUAL, X32, 0, 1), foreign]);
    program.extend([jump(JUMP_GREATER_OR_EQUAL, newest + 1, 0, 1), one(RETURN, policy.unknown)]);
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &policy.rules {
        rule.numbers.iter().for_each(|number| by_number.entry(*number).or_default().push(rule));
    }
    let mut plain: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (number, rules) in by_number {
        match rules[0] {
            Rule { conditions, answer, .. } if conditions.is_empty() => plain.entry(*answer).or_default().push(number),
            _ => {
                let block = decide(&rules, policy.default);
                program.extend([jump(JUMP_EQUAL, number, 1, 0), one(JUMP, block.len() as u32)]);
                program.extend(block);
            }
        }
    }
    for (answer, numbers) in plain {
        for (first, last) in ranges(&numbers) {
            let below = jump(JUMP_GREATER_OR_EQUAL, first, 0, 2);
            program.extend([below, jump(JUMP_GREATER_OR_EQUAL, last + 1, 1, 0), one(RETURN, answer)]);
        }
    }
    program.push(one(RETURN, policy.default));
    if program.len() > MAX_PROGRAM {
        return Err(Error::invalid(format!("{} instructions; the kernel takes {MAX_PROGRAM}", program.len())));
    }
    Ok(program)
}

/// Rules of one call in their order; what none answers, `default` does.
fn decide(rules: &[&Rule], default: u32) -> Vec<Instruction> {
    let mut block = Vec::new();
    for rule in rules {
        let conditions: Vec<Vec<Instruction>> = rule.conditions.iter().map(|condition| test(*condition)).collect();
        // Each condition ends by falling through when it holds, and by a jump of its own when not.
        let mut left: usize = conditions.iter().map(|condition| condition.len() + 1).sum();
        for condition in conditions {
            left -= condition.len() + 1;
            block.extend(condition);
            block.push(one(JUMP, left as u32 + 1));
        }
        block.push(one(RETURN, rule.answer));
    }
    block.push(one(RETURN, default));
    block
}

/// Skips the instruction after it when the condition holds. Arguments are compared as two halves, the high one first.
fn test(condition: Condition) -> Vec<Instruction> {
    let Condition { argument, operator, value, masked } = condition;
    let (high, low) = (ARGUMENTS + argument * 8 + 4, ARGUMENTS + argument * 8);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // The two ways out, as positions: the instruction after the test, and the one after that. Three operators are the others'
    // opposites, with the ways out exchanged.
    let negated = matches!(operator, Operator::NotEqual | Operator::Less | Operator::LessOrEqual);
    let ways = |length: usize| if negated { (length, length + 1) } else { (length + 1, length) };
    match operator {
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => {
            let (mask, wanted) = if operator == Operator::MaskedEqual { (value, masked) } else { (u64::MAX, value) };
            let ((high_mask, low_mask), (high_wanted, low_wanted)) = (halves(mask), halves(wanted));
            let (yes, no) = ways(6);
            vec![
                one(LOAD, high),
                one(AND, high_mask),
                jump(JUMP_EQUAL, high_wanted, 0, no - 3),
                one(LOAD, low),
                one(AND, low_mask),
                jump(JUMP_EQUAL, low_wanted, yes - 6, no - 6),
            ]
        }
        Operator::Greater | Operator::LessOrEqual | Operator::GreaterOrEqual | Operator::Less => {
            let strict = matches!(operator, Operator::Greater | Operator::LessOrEqual);
            let code = if strict { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
            let (high_value, low_value) = halves(value);
            let (yes, no) = ways(5);
            vec![
                one(LOAD, high),
                jump(JUMP_GREATER, high_value, yes - 2, 0),
                jump(JUMP_EQUAL, high_value, 0, no - 3),
                one(LOAD, low),
                jump(code, low_value, yes - 5, no - 5),
            ]
        }
    }
}

/// Runs of numbers, first and last: far fewer comparisons than numbers.
fn ranges(sorted: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do, for the instructions that `compile` uses.
    fn run(program: &[Instruction], number: u32, arguments: [u64; 6], arch: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let Instruction { code, on_true, on_false, value } = program[at];
            let jump = |holds: bool| usize::from(if holds { on_true } else { on_false });
            at += 1 + match code {
                LOAD => {
                    accumulator = match value {
                        NUMBER => number,
                        ARCH => arch,
                        offset => {
                            let argument = arguments[(offset - ARGUMENTS) as usize / 8];
                            if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
                        }
                    };
                    0
                }
                AND => {
                    accumulator &= value;
                    0
                }
                JUMP => value as usize,
                JUMP_EQUAL => jump(accumulator == value),
                JUMP_GREATER => jump(accumulator > value),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= value),
                RETURN => return value,
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    fn id(sysno: Sysno) -> u32 {
        sysno.id() as u32
    }

    #[test]
    fn the_default_follows_the_capabilities() {
        let plain = compile(&default_policy(Capabilities::default()).unwrap()).unwrap();
        let admin = Capabilities { granted: bit("SYS_ADMIN").unwrap(), ambient: 0 };
        let admin = compile(&default_policy(admin).unwrap()).unwrap();
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
            assert_eq!(run(&plain, number, arguments, AUDIT_ARCH), for_plain, "{number} {argument:#x}");
            assert_eq!(run(&admin, number, arguments, AUDIT_ARCH), for_admin, "{number} {argument:#x}");
        }
        assert_eq!(run(&plain, id(Sysno::read), [0; 6], 0x4000_0003), missing);
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
            let program = compile(&profile.policy().unwrap()).unwrap();
            for high in [0_u64, 4, 5, 6, u64::from(u32::MAX)] {
                for low in [0_u64, 2, 6, 7, 8, u64::from(u32::MAX)] {
                    let value = high << 32 | low;
                    let expected = if holds(value) { ALLOW } else { ERRNO | 13 };
                    assert_eq!(
                        run(&program, id(Sysno::read), [0, 0, value, 0, 0, 0], AUDIT_ARCH),
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
        let program = compile(&profile.policy().unwrap()).unwrap();
        let kill = |a, b| run(&program, id(Sysno::kill), [a, b, 0, 0, 0, 0], AUDIT_ARCH);
        assert_eq!((kill(1, 9), kill(1, 8), kill(2, 9), kill(3, 9)), (0x8000_0000, ALLOW, ERRNO | 3, ALLOW));
        assert_eq!(run(&program, id(Sysno::sethostname), [0; 6], AUDIT_ARCH), ERRNO | EPERM);
        assert_eq!(run(&program, id(Sysno::read), [0; 6], AUDIT_ARCH), ALLOW);
    }

    #[test]
    fn files_that_are_no_profiles_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        for text in ["", "{", "{}", r#"{"defaultAction":"SCMP_ACT_DANCE"}"#] {
            std::fs::write(&path, text).unwrap();
            assert!(local_profile(&path).unwrap_err().message.contains("profile.json"), "{text:?}");
        }
        std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert_eq!(local_profile(&path).unwrap().len() % 8, 0);
        assert!(local_profile(directory.path()).is_err() && local_profile(Path::new("/no/such/file")).is_err());
    }
}
