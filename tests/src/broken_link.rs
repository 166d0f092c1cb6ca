//! A link to a registry that breaks off in the middle of what a client sends.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::machine::Machine;

/// A port of a machine's loopback interface that leads to another one.
#[derive(Debug)]
pub struct BrokenLink {
    /// Address and port.
    pub host: String,
    left: Arc<AtomicUsize>,
}

impl BrokenLink {
    /// Leads to `target`. A connection that sends more than `after` bytes at once is cut there; the
    /// next `times` of them are.
    ///
    /// # Panics
    /// There is no port.
    pub fn start(machine: &Machine, target: &str, after: usize, times: usize) -> Self {
        let listener = machine.in_network(|| TcpListener::bind("127.0.0.1:0")).expect("bind");
        let host = listener.local_addr().expect("bound").to_string();
        let left = Arc::new(AtomicUsize::new(times));
        let (target, cuts) = (target.to_owned(), left.clone());
        // The namespace is one of threads, and a thread that another one starts inherits it.
        machine.in_network(|| {
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let Ok(server) = TcpStream::connect(&target) else { continue };
                    let cuts = cuts.clone();
                    let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else {
                        continue;
                    };
                    thread::spawn(move || send(&from, &to, after, &cuts));
                    thread::spawn(move || {
                        let _ = io::copy(&mut &server, &mut &client);
                        let _ = client.shutdown(Shutdown::Both);
                    });
                }
            });
        });
        Self { host, left }
    }

    /// How many connections are still to be cut.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

fn send(from: &TcpStream, to: &TcpStream, after: usize, cuts: &AtomicUsize) {
    let mut sent = 0;
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = { from }.read(&mut buffer) {
        sent += length;
        let is_last = sent > after
            && cuts
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok();
        if is_last || { to }.write_all(&buffer[..length]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
