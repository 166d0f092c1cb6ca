//! Owner, mode, time and extended attributes of files, from tars and to them.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
};

use anyhow::{Context, bail};
use rustix::{
    fs::{Gid, Mode, Timespec, Timestamps, Uid},
    io::Errno,
};
use tar::Entry;

/// The key of an extended attribute in a PAX header, in the form of GNU tar and of docker.
const XATTR: &str = "SCHILY.xattr.";

/// What an entry says of its file.
#[derive(Debug)]
pub(super) struct Metadata {
    pub uid: Uid,
    pub gid: Gid,
    pub mode: Mode,
    pub modified: Timespec,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Metadata {
    /// Reads an entry. `owner` takes the place of the user and group of the tar.
    ///
    /// # Errors
    /// A field is malformed or out of range.
    pub(super) fn read<R: Read>(
        entry: &mut Entry<'_, R>,
        owner: Option<(u32, u32)>,
    ) -> anyhow::Result<Self> {
        let mut xattrs = Vec::new();
        let mut fraction = None;
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension.context("PAX header")?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            if let Some(name) = key.strip_prefix(XATTR.as_bytes()) {
                if may_set(name) {
                    xattrs.push((OsStr::from_bytes(name).to_owned(), value.to_vec()));
                }
            } else if key == b"mtime" {
                fraction = std::str::from_utf8(value).ok().and_then(parse_time);
            } else if key.starts_with(b"GNU.sparse.") {
                bail!("sparse files in the form of PAX are not supported");
            }
        }
        let header = entry.header();
        let fields = header.as_old();
        let seconds = number(&fields.mtime, header.mtime()).context("mtime")?;
        let (uid, gid) = match owner {
            Some(owner) => owner,
            None => (
                id(number(&fields.uid, header.uid()).context("uid")?)?,
                id(number(&fields.gid, header.gid()).context("gid")?)?,
            ),
        };
        let mode = number(&fields.mode, header.mode()).context("mode")?;
        Ok(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            // The type of the file comes from the type of the entry.
            mode: Mode::from_raw_mode(mode & 0o7777),
            modified: fraction
                .unwrap_or(Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 }),
            xattrs,
        })
    }

    pub(super) fn times(&self) -> Timestamps {
        Timestamps { last_access: self.modified, last_modification: self.modified }
    }
}

/// Attributes that control overlayfs would let a tar redirect directories of the container.
fn may_set(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
}

/// The number in a field. One that has not been written is 0, as in dockerd: not every client says who
/// owns what it sends.
fn number<T: Default>(field: &[u8], read: io::Result<T>) -> io::Result<T> {
    match field.iter().all(|byte| [b' ', 0].contains(byte)) {
        true => Ok(T::default()),
        false => read,
    }
}

/// To chown(2), -1 means "do not change", which would leave the file to root.
fn id(id: u64) -> anyhow::Result<u32> {
    match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => bail!("owner {id} is out of range"),
    }
}

/// `SECONDS[.FRACTION]`, where the seconds may be negative.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let mut nanos = 0;
    for digit in digits {
        nanos = nanos * 10 + i64::from(char::from(digit).to_digit(10)?);
    }
    let mut time = Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos };
    if seconds.starts_with('-') && nanos > 0 {
        // Fractions count away from zero in the text, and always forward in the kernel.
        time.tv_sec -= 1;
        time.tv_nsec = 1_000_000_000 - nanos;
    }
    Some(time)
}

/// Ignores that an attribute cannot be set: the filesystem has none, or a security module forbids
/// it.
pub(super) fn tolerate(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_have_fractions_and_be_before_the_epoch() {
        for (text, expected) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("x", None),
            ("1.x", None),
        ] {
            let time = parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
            assert_eq!(time, expected, "{text}");
        }
    }

    #[test]
    fn ids_and_attributes_are_checked() {
        assert!(id(0).is_ok() && id(u64::from(u32::MAX)).is_err() && id(1 << 32).is_err());
        for (name, expected) in [
            ("user.a", true),
            ("security.capability", true),
            ("trusted.overlay.opaque", false),
            ("user.overlay.redirect", false),
        ] {
            assert_eq!(may_set(name.as_bytes()), expected, "{name}");
        }
    }
}
