//! Addresses: one file per reservation, `<data dir>/<network>/<address>`, holding container, interface and boot id.
//!
//! The file is the truth. It is made under a lock of the directory, and a reservation of another boot counts as free, so that
//! neither a crash nor a reboot leaks an address for longer than until the next GC.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use berth_cni::{Attachment, Error, code};
use nix::fcntl::{Flock, FlockArg};

use crate::conf::Conf;

/// The next search starts behind the address that was given last, so that a freed one rests for a while.
const LAST: &str = "last";
const LOCK: &str = "lock";

/// The reservations of one network, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservations {
    directory: PathBuf,
    boot_id: String,
    _lock: Flock<File>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub address: Ipv4Addr,
    pub holder: Attachment,
}

impl Reservations {
    pub(crate) fn open(conf: &Conf) -> Result<Self, Error> {
        let directory = conf.ipam.data_dir.join(&conf.name);
        let open = || -> io::Result<Self> {
            fs::create_dir_all(&directory)?;
            let file = File::create(directory.join(LOCK))?;
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
            Ok(Self { directory: directory.clone(), boot_id, _lock: lock })
        };
        open().map_err(failed("open", &directory))
    }

    /// The address of `holder`, which is the same again when it asks again.
    pub(crate) fn reserve(&self, conf: &Conf, holder: &Attachment) -> Result<Ipv4Addr, Error> {
        let taken = self.list()?;
        if let Some(own) = taken.iter().find(|reservation| reservation.holder == *holder) {
            return Ok(own.address);
        }
        let is_free = |address: &Ipv4Addr| {
            *address != conf.ipam.gateway() && !taken.iter().any(|reservation| reservation.address == *address)
        };
        let Some(address) = search(conf.ipam.first(), conf.ipam.last(), self.last()).find(is_free) else {
            let msg = format!("no address left in {} ({} in use)", conf.ipam.subnet, taken.len());
            return Err(Error::new(code::EXHAUSTED, msg));
        };
        let path = self.directory.join(address.to_string());
        let record = format!("{}\n{}\n{}\n", holder.container_id, holder.ifname, self.boot_id);
        fs::write(&path, record).map_err(failed("write", &path))?;
        let last = self.directory.join(LAST);
        fs::write(&last, address.to_string()).map_err(failed("write", &last))?;
        Ok(address)
    }

    /// Frees what `holder` has.
    pub(crate) fn release(&self, holder: &Attachment) -> Result<(), Error> {
        for address in self.of(holder)? {
            let path = self.directory.join(address.to_string());
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn of(&self, holder: &Attachment) -> Result<impl Iterator<Item = Ipv4Addr>, Error> {
        let holder = holder.clone();
        Ok(self
            .list()?
            .into_iter()
            .filter(move |reservation| reservation.holder == holder)
            .map(|reservation| reservation.address))
    }

    /// All reservations of this boot; those of another are removed on the way.
    pub(crate) fn list(&self) -> Result<Vec<Reservation>, Error> {
        let mut reservations = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed("list", &self.directory))? {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            let Some(address) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let record = fs::read_to_string(&path).map_err(failed("read", &path))?;
            match parse(&record, &self.boot_id) {
                Some(holder) => reservations.push(Reservation { address, holder }),
                None => fs::remove_file(&path).map_err(failed("remove", &path))?,
            }
        }
        Ok(reservations)
    }

    fn last(&self) -> Option<Ipv4Addr> {
        fs::read_to_string(self.directory.join(LAST)).ok()?.parse().ok()
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::new(code::IO, format!("{what} {path}: {error}"))
}

/// `None` when the record is of another boot, or was cut short by a crash.
fn parse(record: &str, boot_id: &str) -> Option<Attachment> {
    let mut lines = record.lines();
    let holder = Attachment { container_id: lines.next()?.to_owned(), ifname: lines.next()?.to_owned() };
    (lines.next()? == boot_id).then_some(holder)
}

/// Every address from `first` to `last`, beginning behind `previous`.
fn search(first: Ipv4Addr, last: Ipv4Addr, previous: Option<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
    let (first, last) = (u32::from(first), u32::from(last));
    let start = previous
        .map(u32::from)
        .filter(|previous| (first..last).contains(previous))
        .map_or(first, |previous| previous + 1);
    (start..=last).chain(first..start).map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_goes_round_once() {
        let address = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        let all = |previous| search(address(2), address(4), previous).collect::<Vec<_>>();
        assert_eq!(all(None), [address(2), address(3), address(4)]);
        assert_eq!(all(Some(address(2))), [address(3), address(4), address(2)]);
        assert_eq!(all(Some(address(4))), [address(2), address(3), address(4)]);
        assert_eq!(all(Some(address(9))), [address(2), address(3), address(4)]);
    }

    #[test]
    fn records_of_another_boot_and_broken_ones_count_as_free() {
        let holder = Attachment { container_id: "a".into(), ifname: "eth0".into() };
        assert_eq!(parse("a\neth0\nboot\n", "boot"), Some(holder));
        assert_eq!(parse("a\neth0\nboot\n", "other"), None);
        assert_eq!(parse("a\neth", "boot"), None);
    }
}
