//! The namespaces of a machine: the process that holds them, and work inside of them.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// Where the kernel says which boot this is.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Starts the process that holds a machine's namespaces, after the commands of `prepare` in them.
pub(crate) fn hold(prepare: &str) -> Child {
    // Mounts do not propagate to the host, and /run/netns is the machine's own, where berthd pins
    // the namespaces of pods. The shell says "ready" when all of that is done.
    let script = format!(
        "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up && {prepare} \
         echo ready && exec sleep infinity"
    );
    let mut holder = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .expect("run unshare");
    let mut ready = [0; 6];
    holder
        .stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut ready)
        .expect("namespaces: unshare, mount or ip failed");
    holder
}

/// The commands by which a machine is in another boot: they show the file at `path`, which is made
/// here, where the kernel says which boot it is.
pub(crate) fn next_boot(path: &Path) -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("read a UUID");
    fs::write(path, id).expect("write a boot id");
    format!("mount --bind {} {BOOT_ID} && ", path.display())
}

/// Runs `work` in the namespace at a path, on a thread of its own. Sockets that it makes stay in
/// that namespace.
pub(crate) fn enter<T: Send>(
    namespace: &Path,
    kind: CloneFlags,
    work: impl FnOnce() -> T + Send,
) -> T {
    let namespace = File::open(namespace).expect("open the namespace");
    // setns(2) is for one thread, so this one ends with the work, and no other is ever in a wrong
    // namespace.
    let result = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // setns(2) refuses a mount namespace to a thread that shares its root directory with
            // others.
            unshare(CloneFlags::CLONE_FS).expect("unshare");
            setns(namespace.as_fd(), kind).expect("setns");
            work()
        });
        thread.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
