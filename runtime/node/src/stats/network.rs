//! Counters of a pod's network interfaces, read in the pod's network namespace.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

/// Counters since the interface was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub received: Counters,
    pub sent: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// The interfaces of each namespace, without `lo`. A pod without a namespace, or whose namespace
/// is gone, has none. Blocks.
pub fn interfaces(namespaces: Vec<Option<PathBuf>>) -> Vec<Vec<Interface>> {
    let count = namespaces.len();
    if namespaces.iter().all(Option::is_none) {
        return vec![Vec::new(); count];
    }
    // setns(2) is for the calling thread, and what it enters cannot be left without a descriptor of
    // the namespace before: a thread of the pool would go on serving requests in a pod's network.
    let thread = std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || namespaces.iter().map(in_namespace).collect::<Vec<_>>());
    let found = thread.ok().and_then(|thread| thread.join().ok());
    found.unwrap_or_else(|| vec![Vec::new(); count])
}

fn in_namespace(namespace: &Option<PathBuf>) -> Vec<Interface> {
    // A pod that is removed at this moment uses nothing.
    namespace.as_deref().and_then(|path| enter_and_read(path).ok()).unwrap_or_default()
}

fn enter_and_read(namespace: &Path) -> io::Result<Vec<Interface>> {
    setns(fs::File::open(namespace)?.as_fd(), CloneFlags::CLONE_NEWNET)?;
    // /proc/net is that of the process' first thread, which is still on the host.
    Ok(parse(&fs::read_to_string("/proc/thread-self/net/dev")?))
}

/// proc_pid_net(5): two lines of titles, then a line for each interface.
fn parse(text: &str) -> Vec<Interface> {
    text.lines().filter_map(parse_line).filter(|interface| interface.name != "lo").collect()
}

/// `name: bytes packets errs drop fifo frame compressed multicast`, and eight more for what was
/// sent.
fn parse_line(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> =
        numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some(Interface {
        name: name.trim().to_owned(),
        received: counters(&numbers, 0)?,
        sent: counters(&numbers, 8)?,
    })
}

fn counters(numbers: &[u64], from: usize) -> Option<Counters> {
    let [bytes, packets, errors, dropped] = *numbers.get(from..from + 4)? else { return None };
    Some(Counters { bytes, packets, errors, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_as_the_kernel_writes_them() {
        let text = concat!(
            "Inter-|   Receive                            |  Transmit\n",
            " face |bytes    packets errs drop fifo frame compressed multicast",
            "|bytes    packets errs drop fifo colls carrier compressed\n",
            "    lo:     100       1    0    0    0     0          0         0",
            "      100       1    0    0    0     0       0          0\n",
            "  eth0:12345678      10    1    2    0     0          0         0",
            "      500       5    3    4    0     0       0          0\n",
        );
        let received = Counters { bytes: 12_345_678, packets: 10, errors: 1, dropped: 2 };
        let sent = Counters { bytes: 500, packets: 5, errors: 3, dropped: 4 };
        assert_eq!(parse(text), [Interface { name: "eth0".to_owned(), received, sent }]);
        assert_eq!(parse("eth0: 1 2 3\n"), []);
    }
}
