//! `berth-dns DIRECTORY`: answers 127.0.0.11:53 in the network namespace of each container that the
//! engine has a file for, see `files`. It lives on while the daemon does not, and ends when the last
//! container has gone.

mod files;
mod namespace;
mod serve;
mod table;
mod wire;

use std::{
    cell::RefCell,
    fs::{File, TryLockError},
    path::PathBuf,
    rc::Rc,
};

use anyhow::Context;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use tokio::{runtime::Builder, task::LocalSet};

use crate::{files::Files, namespace::Namespaces, serve::Shared, table::Table};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: berth-dns DIRECTORY");
    };
    drop_privileges().context("drop privileges")?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(PathBuf::from(directory)))
}

/// What is needed to enter a namespace and to listen at port 53 in it.
fn drop_privileges() -> rustix::io::Result<()> {
    set_no_new_privs(true)?;
    let kept = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_BIND_SERVICE;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

/// The lock says who serves a directory. The engine writes a container's file first and then starts
/// this program, which ends at once if another has the lock. So one that ends looks once more after
/// it has let go of the lock: a file that came meanwhile is served by whoever has the lock next.
async fn run(directory: PathBuf) -> anyhow::Result<()> {
    let lock = File::create(directory.join("lock")).context("open the directory's lock")?;
    loop {
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error).context("lock the directory"),
        }
        let shared = Rc::new(Shared {
            namespaces: Namespaces::new().context("open the own network namespace")?,
            table: RefCell::new(Table::default()),
        });
        let mut files = Files::new(&directory, shared)?;
        while !files.is_idle()? {
            files.follow().await?;
        }
        lock.unlock()?;
        if files.is_idle()? {
            return Ok(());
        }
    }
}
