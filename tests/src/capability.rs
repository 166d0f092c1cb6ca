//! What the kernel and the host can do. A test asks for what it needs by name and never where it
//! runs: the throw-away machine of `hack/vm` is one host among others.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use nix::{
    fcntl::AT_FDCWD,
    sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
};

use crate::{
    builds::OldBuild,
    engine::{docker, docker_plugins},
    image::i386_program,
    programs::faulty_programs,
};

/// Something that a test needs and that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Chains of type `nat` in nftables, for ports of the host and for masquerading.
    Nat,
    /// The token bucket filter of tc-tbf(8), for the bandwidth of pods.
    TokenBucket,
    /// Bridges that filter by VLAN.
    BridgeVlans,
    /// Disks that are files, see loop(4).
    LoopDevices,
    /// File systems that a program serves, see fuse(4).
    Fuse,
    /// XFS, and the program that makes one.
    Xfs,
    /// Btrfs, and the program that makes one.
    Btrfs,
    /// The cpuset controller, in either version of cgroups.
    Cpusets,
    /// Programs of 32 bits, where the processor has 64.
    Programs32Bit,
    /// At least 4 GiB of memory.
    Memory,
    /// The program `prometheus`.
    Prometheus,
    /// The docker CLI.
    DockerCli,
    /// Its plugins compose and buildx (`hack/tools/build compose`).
    DockerPlugins,
    /// A kernel that asks before a program is executed (fanotify(7)).
    ExecPermissions,
    /// The programs of `BERTH_FEATURES=faults hack/build`.
    Faults,
    /// The programs that `hack/contract` builds from the history of the repository.
    OldBuilds,
}

impl Capability {
    /// Its name in `BERTH_TEST_MAY_LACK`.
    fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::TokenBucket => "token-bucket",
            Self::BridgeVlans => "bridge-vlans",
            Self::LoopDevices => "loop-devices",
            Self::Fuse => "fuse",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Cpusets => "cpusets",
            Self::Programs32Bit => "32-bit-programs",
            Self::Memory => "memory",
            Self::Prometheus => "prometheus",
            Self::DockerCli => "docker-cli",
            Self::DockerPlugins => "docker-plugins",
            Self::ExecPermissions => "exec-permissions",
            Self::Faults => "faults",
            Self::OldBuilds => "old-builds",
        }
    }

    /// Whether this machine has it.
    ///
    /// # Panics
    /// When it is missing, with `CI=true`, and is not in the list `BERTH_TEST_MAY_LACK`. Otherwise a
    /// machine that has lost a kernel module would skip tests for ever without anybody noticing.
    pub fn is_there(self) -> bool {
        static KNOWN: Mutex<BTreeMap<Capability, bool>> = Mutex::new(BTreeMap::new());
        // The lock is held while the kernel is asked, so that tests that run at the same time ask
        // once.
        let there = *KNOWN.lock().expect("no probe panics").entry(self).or_insert_with(|| {
            probe(self).unwrap_or_else(|error| {
                eprintln!("{}: {error}", self.name());
                false
            })
        });
        assert!(there || may_be_missing(self), "this machine lacks {}", self.name());
        there
    }
}

/// Whether a test has to stop here, because the machine lacks what it needs; then says so.
pub fn skip_without(capability: Capability) -> bool {
    let there = capability.is_there();
    if !there {
        let thread = thread::current();
        let test = thread.name().unwrap_or("a test");
        // Not by eprintln!, which the test harness hides for tests that pass.
        let line = format!("skipped {test}: this machine lacks {}\n", capability.name());
        let _ = io::stderr().write_all(line.as_bytes());
    }
    !there
}

fn may_be_missing(capability: Capability) -> bool {
    let list = std::env::var("BERTH_TEST_MAY_LACK").unwrap_or_default();
    let is_strict = std::env::var("CI").as_deref() == Ok("true");
    !is_strict || list.split_whitespace().any(|name| name == capability.name())
}

fn probe(capability: Capability) -> io::Result<bool> {
    match capability {
        Capability::Nat => in_new_network(
            "nft 'add table inet t; add chain inet t c { type nat hook postrouting priority 100; \
                }'",
        ),
        Capability::TokenBucket => in_new_network(
            "ip link add name left type veth peer name right
             tc qdisc add dev left root tbf rate 1mbit burst 10kb latency 50ms",
        ),
        Capability::BridgeVlans => {
            in_new_network("ip link add name br0 type bridge vlan_filtering 1")
        }
        Capability::LoopDevices => fs::exists("/dev/loop-control"),
        Capability::Fuse => fs::exists("/dev/fuse"),
        Capability::Xfs => Ok(has_filesystem("xfs")),
        Capability::Btrfs => Ok(has_filesystem("btrfs")),
        Capability::Cpusets => Ok(has_cpusets()),
        Capability::Programs32Bit => runs_32_bits(),
        Capability::Memory => Ok(memory_kib()? >= 4 << 20),
        Capability::Prometheus => Ok(is_installed("prometheus")),
        Capability::DockerCli => Ok(docker().is_some()),
        Capability::DockerPlugins => Ok(docker().is_some() && docker_plugins().is_some()),
        Capability::ExecPermissions => Ok(asks_before_exec()),
        Capability::Faults => Ok(faulty_programs().join("berthd").exists()),
        // The guest of hack/vm sees them too, but its one slow processor has enough to do.
        Capability::OldBuilds => Ok(std::env::var_os("BERTH_TEST_GUEST").is_none()
            && OldBuild::all().iter().all(OldBuild::is_there)),
    }
}

/// Whether a shell script succeeds in a network namespace of its own, which goes with the shell.
fn in_new_network(script: &str) -> io::Result<bool> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-ec", script]).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success())
}

/// Whether the kernel has a file system, and this machine the program that makes one.
fn has_filesystem(name: &str) -> bool {
    // A kernel that has it as a module lists it once that is loaded.
    let _ = Command::new("modprobe").args(["--quiet", name]).status();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.split_whitespace().any(|known| known == name)
        && ["/usr/sbin", "/sbin", "/usr/bin"]
            .iter()
            .any(|directory| Path::new(directory).join(format!("mkfs.{name}")).exists())
}

fn has_cpusets() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    // cgroups(7): name, hierarchy, number of cgroups, enabled.
    let of_v1 = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "cpuset")
        || of_v1.lines().any(|line| line.starts_with("cpuset\t") && line.ends_with("\t1"))
}

/// Starts one: a kernel that cannot says ENOEXEC.
fn runs_32_bits() -> io::Result<bool> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("program");
    fs::write(&program, i386_program())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    // By a shell: another test's fork may still have the file open for writing, which makes
    // execve(2) fail with ETXTBSY, and the shell tries as `cp` made it.
    let copy = format!("cp {0} {0}.copy && exec {0}.copy", program.display());
    let status = Command::new("sh").args(["-c", &copy]).stderr(Stdio::null()).status()?;
    Ok(status.code() == Some(42))
}

fn asks_before_exec() -> bool {
    let flags = InitFlags::FAN_CLASS_CONTENT;
    let mask = MaskFlags::FAN_OPEN_EXEC_PERM;
    let watch = Fanotify::init(flags, EventFFlags::O_RDONLY);
    watch.is_ok_and(|watch| {
        watch.mark(MarkFlags::FAN_MARK_ADD, mask, AT_FDCWD, Some("/proc/self/exe")).is_ok()
    })
}

fn memory_kib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other("no MemTotal in /proc/meminfo"))
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    })
}

/// Whether all controllers are in the one hierarchy of cgroup v2.
pub fn has_unified_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether systemd manages the cgroups, as sd_booted(3) asks, and may be asked for scopes; berthd
/// is then configured to do so.
pub fn has_systemd_scopes() -> bool {
    has_unified_cgroups() && Path::new("/run/systemd/system").exists()
}

/// Whether all that runs at the same time shares one processor, so that a test must wait longer.
pub fn has_single_processor() -> bool {
    thread::available_parallelism().is_ok_and(|count| count.get() == 1)
}
