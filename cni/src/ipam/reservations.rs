//! Addresses in use, as files that host-local can read too: `<data dir>/<network>/<address>` has
//! the container and the interface that the address is reserved for.
//!
//! That file decides. A second one, `<container>@<interface>`, lists the addresses of an attachment
//! and is written first, so that ADD and DEL read the files of their own attachment only, however
//! many pods there are. Reservations are valid for one boot of the machine: after a reboot no pod
//! is left, and all addresses are free.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use berth_cni::{Attachment, Error, code};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    conf::{Local, Range, plus},
    steps::{At, begin},
};

const LOCK: &str = "lock";
const BOOT: &str = "boot";

/// The reservations of one network. The lock that this holds keeps other ADDs and DELs of the
/// network from choosing the same address, and is released when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservations {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Reservations {
    /// Opens the reservations of a network and waits for their lock.
    ///
    /// # Errors
    /// The directory cannot be made, read or locked.
    pub(crate) fn open(data_dir: &Path, network: &str) -> Result<Self, Error> {
        let directory = data_dir.join(network);
        Self::lock(directory.clone()).map_err(failed("open", &directory))
    }

    fn lock(directory: PathBuf) -> io::Result<Self> {
        let path = directory.join(LOCK);
        clear(&path)?;
        let file = match File::create(&path) {
            // The first address of this network since the machine was booted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&directory)?;
                File::create(&path)?
            }
            file => file?,
        };
        // The kernel releases the lock with the file, also when this process is killed.
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        let reservations = Self { directory, _lock: lock };
        reservations.forget_other_boots()?;
        Ok(reservations)
    }

    /// Frees everything when the machine was booted since the last call.
    fn forget_other_boots(&self) -> io::Result<()> {
        let now = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let path = self.directory.join(BOOT);
        let then = read(&path);
        match then {
            Ok(then) if then == now => return Ok(()),
            // Damaged. Pods of this boot may have addresses here, which nobody else may get; those
            // of an earlier boot are freed by GC.
            Ok(then) if !is_boot_id(&then) => {}
            _ => self.remove_all()?,
        }
        // Written last, so that after a crash in between the next call removes the rest.
        clear(&path)?;
        fs::write(path, now)
    }

    fn remove_all(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name() != LOCK {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Reserves an address of each set of `local` for `holder`, in the order of the sets. A holder that has
    /// them already gets the same ones.
    ///
    /// # Errors
    /// A set has no free address (code 101), or a requested address is in no set (7) or in use
    /// (103).
    pub(crate) fn reserve(
        &self,
        local: &Local,
        requested: &[IpAddr],
        holder: &Attachment,
    ) -> Result<Vec<(IpAddr, Range)>, Error> {
        let sets = &local.sets;
        let range_of =
            |address: &IpAddr| sets.iter().flatten().find(|range| range.contains(address)).copied();
        let outside = requested
            .iter()
            .find(|address| range_of(address).is_none_or(|range| range.gateway == **address));
        if let Some(address) = outside {
            return Err(Error::new(
                code::INVALID_CONFIG,
                format!("{address} is not in a range of this network"),
            ));
        }
        let own = self.of(holder)?;
        let found: Vec<(IpAddr, Range)> =
            own.iter().filter_map(|address| Some((*address, range_of(address)?))).collect();
        if found.len() == sets.len() {
            return Ok(found);
        }
        let chosen: Vec<(IpAddr, Range)> = sets
            .iter()
            .enumerate()
            .map(|(number, set)| self.choose((number, set), requested, local.lowest_first))
            .collect::<Result<_, _>>()?;
        // Addresses of ranges that the configuration does not have any more stay in the list, so
        // that a DEL releases them too.
        let listed: String = own
            .iter()
            .chain(chosen.iter().map(|(address, _)| address))
            .map(|a| format!("{a}\n"))
            .collect();
        // The list before the addresses: after a crash in between, DEL finds in the list what may
        // have been taken.
        self.write(&index(holder), &listed)?;
        begin(At::AddAddress)?;
        for (number, (address, _)) in chosen.iter().enumerate() {
            self.write(&address.to_string(), &record(holder))?;
            self.write(&last(number), &address.to_string())?;
        }
        Ok(chosen)
    }

    /// A free address of a set: the requested one where the set has it, else the next one behind
    /// the address that was given last, or the lowest one.
    fn choose(
        &self,
        (number, set): (usize, &[Range]),
        requested: &[IpAddr],
        lowest_first: bool,
    ) -> Result<(IpAddr, Range), Error> {
        let is_free = |address: IpAddr| !self.directory.join(address.to_string()).exists();
        for range in set {
            let Some(address) = requested.iter().find(|address| range.contains(address)) else {
                continue;
            };
            if is_free(*address) {
                return Ok((*address, *range));
            }
            let holder = read(&self.directory.join(address.to_string())).unwrap_or_default();
            let msg = format!(
                "{address} is in use by container {}",
                holder.lines().next().unwrap_or("?")
            );
            return Err(Error::new(code::IN_USE, msg));
        }
        let previous = read(&self.directory.join(last(number))).ok();
        let previous = previous.filter(|_| !lowest_first).and_then(|text| text.parse().ok());
        let found = search(set, previous).find(|(address, _)| is_free(*address));
        found.ok_or_else(|| {
            let ranges: Vec<String> = set.iter().map(ToString::to_string).collect();
            Error::new(
                code::EXHAUSTED,
                format!("no address left in {}: all are in use", ranges.join(", ")),
            )
        })
    }

    /// Frees the addresses of `holder`; success when it has none.
    pub(crate) fn release(&self, holder: &Attachment) -> Result<(), Error> {
        // The list goes last: a release that is cut short can be repeated from it.
        for address in self.of(holder)? {
            self.remove(&address.to_string())?;
        }
        self.remove(&index(holder))
    }

    /// The addresses of `holder`, in the order in which they were reserved.
    pub(crate) fn of(&self, holder: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let path = self.directory.join(index(holder));
        let listed = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(failed("read", &path))?,
        };
        // A list that is damaged does not say which addresses are the holder's: their own files do.
        let Some(listed) = parse_list(&listed) else {
            let is_own = |address: &IpAddr| self.held_by(address) == record(holder);
            return Ok(self.taken()?.into_iter().filter(is_own).collect());
        };
        // An address may be listed that was never taken, because ADD crashed in between; by now it
        // may be reserved for somebody else. A file that is damaged, as by a crash that left it
        // empty, is this holder's: it would be nobody's otherwise, and never be freed.
        let is_own = |address: &IpAddr| {
            let held = self.held_by(address);
            let is_there = self.directory.join(address.to_string()).symlink_metadata().is_ok();
            is_there && (held == record(holder) || !is_record(&held))
        };
        Ok(listed.into_iter().filter(is_own).collect())
    }

    /// What the file of an address says; nothing where there is none.
    fn held_by(&self, address: &IpAddr) -> String {
        read(&self.directory.join(address.to_string())).unwrap_or_default()
    }

    /// All attachments that have addresses.
    pub(crate) fn holders(&self) -> Result<Vec<Attachment>, Error> {
        Ok(self.names()?.iter().filter_map(|name| holder(name)).collect())
    }

    /// All addresses in use.
    pub(crate) fn taken(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.names()?.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        Ok(entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        clear(&path).and_then(|()| fs::write(&path, text)).map_err(failed("write", &path))
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        remove(&path).map_err(failed("remove", &path))
    }
}

/// Reads a file as text, lossily. What is no file reads as an empty one, and is not opened: a FIFO
/// would block until somebody writes to it.
fn read(path: &Path) -> io::Result<String> {
    match path.symlink_metadata()?.is_file() {
        true => Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned()),
        false => Ok(String::new()),
    }
}

/// Removes whatever has a file's name. Success when nothing is there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes what has a file's name and is none.
fn clear(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() => remove(path),
        _ => Ok(()),
    }
}

/// Whether this is a UUID, as every boot has one.
fn is_boot_id(text: &str) -> bool {
    let text = text.trim();
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// The addresses of a list; `None` if it is damaged. It is never empty, and each line is ended.
fn parse_list(text: &str) -> Option<Vec<IpAddr>> {
    let lines = text.strip_suffix('\n')?.split('\n');
    lines.map(|line| line.parse().ok()).collect()
}

/// Whether this may be the content of an address' file.
fn is_record(text: &str) -> bool {
    text.split_once("\r\n")
        .is_some_and(|(container, interface)| !container.is_empty() && !interface.is_empty())
}

/// Name of the file that lists the addresses of a holder.
fn index(holder: &Attachment) -> String {
    format!("{}@{}", holder.container_id, holder.ifname)
}

/// The attachment whose list has this name.
fn holder(index: &str) -> Option<Attachment> {
    let (container_id, ifname) = index.split_once('@')?;
    Some(Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

/// Content of an address's file: container and interface on two lines, as host-local writes them.
fn record(holder: &Attachment) -> String {
    format!("{}\r\n{}", holder.container_id, holder.ifname)
}

/// Name of the file with the address that was given last. The next search starts behind it, so that
/// an address that was just freed is not given to another pod at once, while others may still have
/// connections to it.
fn last(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::new(code::IO, format!("{what} {path}: {error}"))
}

/// All addresses of a set except the gateways, beginning behind `previous` and going round.
fn search(set: &[Range], previous: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, Range)> {
    let start = previous.and_then(|previous| {
        Some((set.iter().position(|range| range.contains(&previous))?, previous))
    });
    let (first, behind) = match start {
        Some((position, previous)) => (position, Some(previous)),
        None => (0, None),
    };
    // The range of `previous` is visited twice: first the addresses behind it, and at the end, when
    // all other ranges were searched, the whole range.
    let rounds = (first..set.len()).chain(0..=first.min(set.len().saturating_sub(1)));
    let ranges: Vec<Range> = rounds.map(|position| set[position]).collect();
    ranges.into_iter().enumerate().flat_map(move |(round, range)| {
        let start = behind.filter(|_| round == 0).map_or(range.start, |previous| plus(previous, 1));
        std::iter::successors(Some(start), move |address| {
            (*address < range.end).then(|| plus(*address, 1))
        })
        .filter(move |address| range.contains(address) && *address != range.gateway)
        .map(move |address| (address, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &str, end: &str) -> Range {
        let gateway = "10.0.0.1".parse().unwrap();
        Range {
            subnet: "10.0.0.0/24".parse().unwrap(),
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
            gateway,
        }
    }

    #[test]
    fn a_damaged_list_is_told_from_a_whole_one() {
        let of = |text: &str| parse_list(text).map(|list| list.len());
        for (text, expected) in [
            ("10.0.0.2\n", Some(1)),
            ("10.0.0.2\nfd00::2\n", Some(2)),
            ("", None),
            ("\n", None),
            ("10.0.0", None),
            ("10.0.0.2\nfd00", None),
            ("\u{fffd}\0", None),
        ] {
            assert_eq!(of(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_search_goes_round() {
        let set = [range("10.0.0.1", "10.0.0.3"), range("10.0.0.8", "10.0.0.9")];
        let ends = |previous: Option<&str>| {
            let mut found: Vec<u8> = Vec::new();
            for (address, _) in search(&set, previous.map(|text| text.parse().unwrap())) {
                let IpAddr::V4(address) = address else { panic!("of another family") };
                if !found.contains(&address.octets()[3]) {
                    found.push(address.octets()[3]);
                }
            }
            found
        };
        assert_eq!(ends(None), [2, 3, 8, 9]);
        assert_eq!(ends(Some("10.0.0.2")), [3, 8, 9, 2]);
        assert_eq!(ends(Some("10.0.0.3")), [8, 9, 2, 3]);
        assert_eq!(ends(Some("10.0.0.9")), [2, 3, 8, 9]);
        assert_eq!(ends(Some("10.0.0.77")), [2, 3, 8, 9]);
    }
}
