//! Users and groups of a container, by its own /etc/passwd and /etc/group.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_base::{error::Error, open_in_root::open_in_root};
use berth_shim::record::{UNKNOWN_GROUP, UNKNOWN_USER};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use crate::http::error::{Failure, Result};

/// The longest file that is read, in bytes: the shim has the same limit.
const MAX_FILE: u64 = 10 << 20;

/// Refuses a user that the container of the process `pid` does not know. Numbers need no entry.
///
/// # Errors
/// 400 in dockerd's words.
pub(crate) fn check(pid: u32, user: &str) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty()) {
        Ok(root) => find(root.as_fd(), user).map(drop),
        // It has ended, which the start of an exec tells better.
        Err(_) => Ok(()),
    }
}

/// Whether `USER[:GROUP]` has a group. It is the only one then: what else /etc/group says of the user
/// does not count.
pub(crate) fn has_group(user: &str) -> bool {
    user.split_once(':').is_some_and(|(_, group)| !group.is_empty())
}

/// The user and the group of `USER[:GROUP]`, each a name or a number, in the container whose root
/// directory this is.
///
/// # Errors
/// 400 in dockerd's words.
pub(crate) fn find(root: BorrowedFd<'_>, user: &str) -> Result<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, ""));
    let passwd = read(root, "etc/passwd");
    let known = entry(&passwd, user);
    let id = |fields: &[&str], at: usize| fields.get(at).and_then(|field| field.parse().ok());
    let uid = match (user.parse(), &known) {
        (Ok(number), _) => number,
        (Err(_), Some(fields)) => id(fields, 2).unwrap_or(0),
        (Err(_), None) if user.is_empty() => 0,
        (Err(_), None) => return Err(unknown("user", user, "passwd")),
    };
    let primary = known.as_ref().and_then(|fields| id(fields, 3)).unwrap_or(0);
    let gid = match group.parse() {
        Ok(number) => number,
        Err(_) if group.is_empty() => primary,
        Err(_) => entry(&read(root, "etc/group"), group)
            .and_then(|fields| id(&fields, 2))
            .ok_or_else(|| unknown("group", group, "group"))?,
    };
    Ok((uid, gid))
}

/// The user, or the group, that has this name in /etc/passwd or /etc/group of this root.
pub(crate) fn number_of(root: BorrowedFd<'_>, file: &str, name: &str) -> Option<u32> {
    entry(&read(root, file), name)?.get(2)?.parse().ok()
}

/// dockerd's words for a start that failed because its user or a group is not known. `None` if it
/// failed otherwise.
pub(crate) fn not_found(error: &Error) -> Option<String> {
    let failure = error.step.as_ref()?;
    match failure.step.as_str() {
        UNKNOWN_USER => Some(unknown("user", &failure.path, "passwd").message),
        UNKNOWN_GROUP => Some(unknown("group", &failure.path, "group").message),
        _ => None,
    }
}

fn unknown(noun: &str, name: &str, file: &str) -> Failure {
    let text = format!("unable to find {noun} {name}: no matching entries in {file} file");
    Failure::bad_request(text)
}

/// The fields of the line for a user or group: by its name, or by its number, as its third field.
fn entry<'a>(text: &'a str, wanted: &str) -> Option<Vec<&'a str>> {
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| {
        fields.first().is_some_and(|name| !wanted.is_empty() && *name == wanted)
            || wanted.parse::<u32>().is_ok() && fields.get(2) == Some(&wanted)
    })
}

/// Reads a file of the container; empty if it cannot be read. The container has written it, so that
/// it may be anything: links stay in the container, and only a regular file is read.
fn read(root: BorrowedFd<'_>, path: &str) -> String {
    let open = || -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file: OwnedFd = open_in_root(root, Path::new(path), flags)?;
        if !FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = Vec::new();
        File::from(file).take(MAX_FILE).read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&open().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_found_and_numbers_need_no_entry() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:7:8::/:\n")
            .unwrap();
        fs::write(root.path().join("etc/group"), "root:x:0:\nstaff:x:9:web\n").unwrap();
        let directory = File::open(root.path()).unwrap();
        for (user, expected) in [
            ("", Ok((0, 0))),
            ("root", Ok((0, 0))),
            ("web", Ok((7, 8))),
            ("7", Ok((7, 8))),
            ("web:staff", Ok((7, 9))),
            ("web:5", Ok((7, 5))),
            ("4000000:root", Ok((4_000_000, 0))),
            ("4000000", Ok((4_000_000, 0))),
            ("none", Err("unable to find user none: no matching entries in passwd file")),
            ("0:none", Err("unable to find group none: no matching entries in group file")),
        ] {
            let found = find(directory.as_fd(), user).map_err(|failure| failure.message);
            assert_eq!(found, expected.map_err(str::to_owned), "{user}");
        }
    }
}
