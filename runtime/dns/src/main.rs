//! `berth-dns DIRECTORY`: answers 127.0.0.11:53 in the network namespace of each container that the
//! engine has a file for, see `files`. It lives on while the daemon does not, and ends when the last
//! container has gone.

mod confine;
mod files;
mod namespace;
mod redirect;
mod serve;
mod table;
mod wire;

use std::{cell::RefCell, fs::File, path::PathBuf, rc::Rc};

use anyhow::Context;
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
    process::setsid,
};
use tokio::{runtime::Builder, task::LocalSet};

use crate::{confine::confine, files::Files, namespace::Namespaces, serve::Shared, table::Table};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: berth-dns DIRECTORY");
    };
    // What is sent to the daemon's session is not meant for this program. An error says that it has one
    // of its own already.
    let _ = setsid();
    confine().context("give up privileges")?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(PathBuf::from(directory)))
}

/// The lock says who serves a directory, and the kernel tells the engine who has it (`F_GETLK` of
/// fcntl(2)). The engine writes a container's file first and then starts
/// this program, which ends at once if another has the lock. So one that ends looks once more after
/// it has let go of the lock: a file that came meanwhile is served by whoever has the lock next.
async fn run(directory: PathBuf) -> anyhow::Result<()> {
    let lock = File::create(directory.join("lock")).context("open the directory's lock")?;
    loop {
        match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Ok(()),
            Err(error) => return Err(error).context("lock the directory"),
        }
        let shared = Rc::new(Shared {
            namespaces: Namespaces::new().context("open the own network namespace")?,
            table: RefCell::new(Table::default()),
        });
        let mut files = Files::new(&directory, shared)?;
        while !files.is_idle()? {
            files.follow().await?;
        }
        files.end()?;
        fcntl_lock(&lock, FlockOperation::Unlock)?;
        if files.is_idle()? {
            return Ok(());
        }
    }
}
