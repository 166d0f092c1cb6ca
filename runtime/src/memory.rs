//! How much memory malloc keeps after it was freed.

use std::{env, os::unix::process::CommandExt, process::Command};

/// glibc's variable (ld.so(8)), which it reads before `main` and never again.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Blocks from 128 KiB on are mappings of their own, which go back to the kernel when they are
/// freed; and of the free memory at the end of an arena, 1 MiB is kept. Smaller than the buffers of
/// a download, of up to 400 KiB: a small block behind some of those would keep all of them.
const LIMITS: &str = "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=1048576";

/// Executes the program again with these limits in its environment, unless there are some already.
///
/// malloc raises its own limits to as much as 64 MiB after large blocks were freed (mallopt(3),
/// `M_MMAP_THRESHOLD`). After some gRPC messages of 15 MiB the daemon would keep 140 MiB for the
/// rest of its life, instead of 5.
pub(crate) fn give_back() {
    if cfg!(not(target_env = "gnu")) || env::var_os(TUNABLES).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut again = Command::new(&program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // It returns only on failure, as when the program was replaced a moment ago. This process then
    // serves all the same, with more memory.
    let _ = again.args(arguments).env(TUNABLES, LIMITS).exec();
}
