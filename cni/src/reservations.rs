//! Addresses in use: one file per address, `<data dir>/<network>/<address>`, holding container and interface as host-local has it.
//!
//! The file is the truth. `<container>@<interface>` lists what an attachment has and is written before, so that neither ADD nor
//! DEL reads what belongs to others, however many there are. All of it is of one boot: with another, everything is free again.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use berth_cni::{Attachment, Error, code};
use nix::fcntl::{Flock, FlockArg};

use crate::conf::{Range, plus};

const LOCK: &str = "lock";
const BOOT: &str = "boot";

/// The reservations of one network, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservations {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Reservations {
    pub(crate) fn open(data_dir: &Path, network: &str) -> Result<Self, Error> {
        let directory = data_dir.join(network);
        let open = || -> io::Result<Self> {
            let file = match File::create(directory.join(LOCK)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(&directory)?;
                    File::create(directory.join(LOCK))?
                }
                file => file?,
            };
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            let reservations = Self { directory: directory.clone(), _lock: lock };
            reservations.forget_other_boots()?;
            Ok(reservations)
        };
        open().map_err(failed("open", &directory))
    }

    fn forget_other_boots(&self) -> io::Result<()> {
        let now = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let path = self.directory.join(BOOT);
        if fs::read_to_string(&path).is_ok_and(|then| then == now) {
            return Ok(());
        }
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path())?;
            }
        }
        // Only now, so that a crash in between begins again.
        fs::write(path, now)
    }

    /// An address of each set, in their order: the same again when `holder` asks again.
    ///
    /// # Errors
    /// A set without a free address, or a wanted address that is in no set, or in use.
    pub(crate) fn reserve(
        &self,
        sets: &[Vec<Range>],
        wanted: &[IpAddr],
        holder: &Attachment,
    ) -> Result<Vec<(IpAddr, Range)>, Error> {
        let range_of = |address: &IpAddr| sets.iter().flatten().find(|range| range.contains(address)).copied();
        let outside = wanted.iter().find(|address| range_of(address).is_none_or(|range| range.gateway == **address));
        if let Some(address) = outside {
            return Err(Error::new(code::INVALID_CONFIG, format!("{address} is not in a range of this network")));
        }
        let own = self.of(holder)?;
        let found: Vec<(IpAddr, Range)> =
            own.iter().filter_map(|address| Some((*address, range_of(address)?))).collect();
        if found.len() == sets.len() {
            return Ok(found);
        }
        let chosen: Vec<(IpAddr, Range)> =
            sets.iter().enumerate().map(|(number, set)| self.choose(number, set, wanted)).collect::<Result<_, _>>()?;
        // What it had of other ranges, before the configuration changed, stays listed until it is released.
        let listed: String =
            own.iter().chain(chosen.iter().map(|(address, _)| address)).map(|a| format!("{a}\n")).collect();
        self.write(&index(holder), &listed)?;
        for (number, (address, _)) in chosen.iter().enumerate() {
            self.write(&address.to_string(), &record(holder))?;
            self.write(&last(number), &address.to_string())?;
        }
        Ok(chosen)
    }

    fn choose(&self, number: usize, set: &[Range], wanted: &[IpAddr]) -> Result<(IpAddr, Range), Error> {
        let is_free = |address: IpAddr| !self.directory.join(address.to_string()).exists();
        for range in set {
            let Some(address) = wanted.iter().find(|address| range.contains(address)) else { continue };
            if is_free(*address) {
                return Ok((*address, *range));
            }
            let holder = fs::read_to_string(self.directory.join(address.to_string())).unwrap_or_default();
            let msg = format!("{address} is in use by container {}", holder.lines().next().unwrap_or("?"));
            return Err(Error::new(code::IN_USE, msg));
        }
        let previous = fs::read_to_string(self.directory.join(last(number))).ok().and_then(|text| text.parse().ok());
        let found = search(set, previous).find(|(address, _)| is_free(*address));
        found.ok_or_else(|| {
            let ranges: Vec<String> = set.iter().map(ToString::to_string).collect();
            Error::new(code::EXHAUSTED, format!("no address left in {}: all are in use", ranges.join(", ")))
        })
    }

    /// Frees what `holder` has.
    pub(crate) fn release(&self, holder: &Attachment) -> Result<(), Error> {
        for address in self.of(holder)? {
            self.remove(&address.to_string())?;
        }
        self.remove(&index(holder))
    }

    /// What `holder` has, in the order in which it was given.
    pub(crate) fn of(&self, holder: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let path = self.directory.join(index(holder));
        let listed = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(failed("read", &path))?,
        };
        let record = record(holder);
        // What was listed and never taken is somebody else's by now, or nobody's; cut short by a crash it is empty.
        let is_own = |address: &IpAddr| {
            fs::read_to_string(self.directory.join(address.to_string()))
                .is_ok_and(|held| held.is_empty() || held == record)
        };
        Ok(listed.lines().filter_map(|line| line.parse().ok()).filter(is_own).collect())
    }

    /// Everybody who has an address.
    pub(crate) fn holders(&self) -> Result<Vec<Attachment>, Error> {
        let attachment = |name: String| {
            let (container_id, ifname) = name.split_once('@')?;
            Some(Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
        };
        Ok(self.names()?.into_iter().filter_map(attachment).collect())
    }

    /// Addresses in use.
    pub(crate) fn taken(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.names()?.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        fs::write(&path, text).map_err(failed("write", &path))
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

fn index(holder: &Attachment) -> String {
    format!("{}@{}", holder.container_id, holder.ifname)
}

fn record(holder: &Attachment) -> String {
    format!("{}\r\n{}", holder.container_id, holder.ifname)
}

/// The next search starts behind the address that was given last, so that a freed one rests for a while.
fn last(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::new(code::IO, format!("{what} {path}: {error}"))
}

/// Every address of a set but the gateways, beginning behind `previous`.
fn search(set: &[Range], previous: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, Range)> {
    let start = previous.and_then(|previous| Some((set.iter().position(|range| range.contains(&previous))?, previous)));
    let (first, behind) = match start {
        Some((position, previous)) => (position, Some(previous)),
        None => (0, None),
    };
    // The range of `previous` comes twice: its end at first, its beginning at last.
    let rounds = (first..set.len()).chain(0..=first.min(set.len().saturating_sub(1)));
    let ranges: Vec<Range> = rounds.map(|position| set[position]).collect();
    ranges.into_iter().enumerate().flat_map(move |(round, range)| {
        let start = behind.filter(|_| round == 0).map_or(range.start, |previous| plus(previous, 1));
        std::iter::successors(Some(start), move |address| (*address < range.end).then(|| plus(*address, 1)))
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
