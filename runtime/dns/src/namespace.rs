//! Sockets of a network namespace. The program has one thread, which enters the namespace, makes the
//! socket and comes back, with nothing in between that waits.

use std::{fs::File, io, os::fd::AsFd, process};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

#[derive(Debug)]
pub(crate) struct Namespaces {
    own: File,
}

impl Namespaces {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { own: File::open("/proc/thread-self/ns/net")? })
    }

    /// Does what needs no waiting within a namespace.
    pub(crate) fn within<T>(
        &self,
        namespace: &File,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        enter(namespace)?;
        let made = make();
        // To go on in a container's namespace would be to answer one container with another's eyes.
        if let Err(error) = enter(&self.own) {
            eprintln!("berth-dns: cannot come back from a network namespace: {error}");
            process::abort();
        }
        made
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
