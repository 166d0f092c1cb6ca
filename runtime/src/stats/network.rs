//! Counters of a pod's network interfaces, read where they are: in its namespace.

use std::{fs, io, os::fd::AsFd, path::PathBuf};

use nix::sched::{CloneFlags, setns};

/// Since the interface is there; bytes and packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub name: String,
    pub received: Counters,
    pub sent: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Of each namespace, without `lo`. One that is gone, or not there, has none. Blocks.
pub(super) fn interfaces(namespaces: Vec<Option<PathBuf>>) -> Vec<Vec<Interface>> {
    let count = namespaces.len();
    if namespaces.iter().all(Option::is_none) {
        return vec![Vec::new(); count];
    }
    let look = move || {
        let of = |namespace: Option<PathBuf>| namespace.and_then(|path| inside(&path).ok()).unwrap_or_default();
        namespaces.into_iter().map(of).collect::<Vec<_>>()
    };
    // A thread that enters other namespaces ends there.
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(look);
    let found = thread.ok().and_then(|thread| thread.join().ok());
    found.unwrap_or_else(|| vec![Vec::new(); count])
}

fn inside(namespace: &PathBuf) -> io::Result<Vec<Interface>> {
    setns(fs::File::open(namespace)?.as_fd(), CloneFlags::CLONE_NEWNET)?;
    Ok(parse(&fs::read_to_string("/proc/thread-self/net/dev")?))
}

/// Two lines of titles, then `name: bytes packets errs drop fifo frame compressed multicast` and eight more for what was sent.
fn parse(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let counters = |from: usize| {
            let [bytes, packets, errors, dropped] = *numbers.get(from..from + 4)? else { return None };
            Some(Counters { bytes, packets, errors, dropped })
        };
        let name = name.trim();
        let interface = Interface { name: name.to_owned(), received: counters(0)?, sent: counters(8)? };
        (name != "lo").then_some(interface)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_as_the_kernel_writes_them() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:12345678      10    1    2    0     0          0         0      500       5    3    4    0     0       0          0
";
        let received = Counters { bytes: 12_345_678, packets: 10, errors: 1, dropped: 2 };
        let sent = Counters { bytes: 500, packets: 5, errors: 3, dropped: 4 };
        assert_eq!(parse(text), [Interface { name: "eth0".to_owned(), received, sent }]);
        assert_eq!(parse("eth0: 1 2 3\n"), []);
    }
}
