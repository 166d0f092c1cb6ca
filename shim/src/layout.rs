//! The names of the files in a container's directory, and who writes each.

/// What to run. Written by the daemon before launch.
pub const SPEC: &str = "spec.json";
/// The compiled seccomp filter, an array of `struct sock_filter`. Written by the daemon; absent
/// means no filter.
pub const SECCOMP: &str = "seccomp.bpf";
/// `linux.seccomp` of the OCI runtime specification, for containers that another runtime makes.
/// Written by the daemon; absent means no filter.
pub const SECCOMP_PROFILE: &str = "seccomp.json";
/// The eBPF program that says which devices the cgroup may use, an array of `struct bpf_insn`.
/// Written by the daemon; absent means that no program does.
pub const DEVICES: &str = "devices.bpf";
/// The namespaces to make for a pod. Written by the daemon into a sandbox's directory.
pub const PIN: &str = "pin.json";
/// An empty directory, for what is mounted for a moment.
pub const SCRATCH: &str = "scratch";
/// `record::Started`. Written by the shim once the program runs.
pub const STARTED: &str = "started.json";
/// `record::Exited`. The shim's last act. Where the disk takes nothing it is beside the socket
/// instead.
pub const EXITED: &str = "exit.json";
/// Locked with flock(2) for as long as a shim lives.
pub const LOCK: &str = "lock";
/// Where kernels before 6.5, and other OCI runtimes, have the root filesystem mounted first, in a
/// mount namespace of its own only.
pub const ROOTFS: &str = "rootfs";
/// The lowest layer of a container whose mounts fit no shared one: places for them, made by the shim.
pub const MOUNT_POINTS: &str = "mount-points";
/// The writable layer of the overlay.
pub const UPPER: &str = "upper";
/// The scratch directory that overlayfs wants beside `upper`.
pub const WORK: &str = "work";
/// Directory of the volumes that the image declares, one directory each.
pub const VOLUMES: &str = "volumes";
/// The socket, in the container's directory below the state directory.
pub const SOCKET: &str = "shim.sock";
