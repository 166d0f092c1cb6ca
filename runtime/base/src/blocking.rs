//! Work that waits for a disk or for the kernel, called from asynchronous code.
//!
//! While a worker thread of the runtime is blocked in a system call, the tasks that are queued on
//! it do not run. A single fsync on a busy disk would delay requests that need no disk at all. So
//! whatever may wait runs in one of the two functions of this file. Debug builds check that for
//! every access to a record, and end the process where it is not so: tests run with those.

use std::{cell::Cell, time::Duration};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinHandle,
};
use tracing::Span;

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// How long a thread for such work waits for more before it ends.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Keeps one thread for such work from ending, as long as this runs. At the limit of processes no
/// other can be started: without any the runtime panics, and with one the work is done in turn.
pub async fn keep_a_thread() {
    loop {
        let _ = spawn_blocking(|| ()).await;
        tokio::time::sleep(KEEP_ALIVE / 2).await;
    }
}

/// Runs `work` on this thread, after handing the tasks that are queued on it to another thread.
///
/// It is for a few system calls on borrowed data. Longer work belongs in `spawn_blocking`.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    if MAY_BLOCK.get() {
        return work();
    }
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| permitted(work)),
        // There is no other thread to hand tasks to, as in unit tests.
        _ => permitted(work),
    }
}

/// Runs `work` on one of the threads that the runtime keeps for such work, whether or not anybody
/// waits for it.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    // What it does belongs to the trace of whoever asked for it.
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(|| permitted(work)))
}

fn permitted<T>(work: impl FnOnce() -> T) -> T {
    let before = MAY_BLOCK.replace(true);
    let done = work();
    MAY_BLOCK.set(before);
    done
}

/// Ends the process if this thread serves asynchronous tasks and is about to wait.
pub fn check() {
    if Handle::try_current().is_ok() && !MAY_BLOCK.get() {
        let at = std::backtrace::Backtrace::force_capture();
        eprintln!("berthd: a thread that serves requests is about to wait for the disk:\n{at}");
        std::process::abort();
    }
}
