//! Whether a running container knows a user, by its own /etc/passwd and /etc/group.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

use crate::http::error::{Failure, Result};

/// The longest file that is read, in bytes: the shim has the same limit.
const MAX_FILE: u64 = 10 << 20;

/// Refuses a user that the container of the process `pid` does not know. Numbers need no entry.
///
/// # Errors
/// 400 in dockerd's words.
pub(crate) fn check(pid: u32, user: &str) -> Result<()> {
    let (user, group) = user.split_once(':').unwrap_or((user, ""));
    for (what, name) in [("passwd", user), ("group", group)] {
        let is_known = name.is_empty()
            || name.parse::<u32>().is_ok()
            || has_entry(&read(pid, what).unwrap_or_default(), name);
        if !is_known {
            let noun = if what == "passwd" { "user" } else { "group" };
            return Err(Failure::bad_request(format!(
                "unable to find {noun} {name}: no matching entries in {what} file"
            )));
        }
    }
    Ok(())
}

fn has_entry(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.split_once(':').is_some_and(|(first, _)| first == name))
}

/// Reads a file of the container's /etc. The container has written it, so that it may be anything:
/// links stay in the container, and only a regular file is read.
fn read(pid: u32, name: &str) -> io::Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = open(format!("/proc/{pid}/root"), flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, format!("etc/{name}"), flags, Mode::empty(), resolve)?;
    if !FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    File::from(file).take(MAX_FILE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_numbers_need_no_entry() {
        let own = std::process::id();
        for (user, expected) in [
            ("root", None),
            ("4000000:root", None),
            (
                "nobody-here",
                Some("unable to find user nobody-here: no matching entries in passwd file"),
            ),
            (
                "0:none-such",
                Some("unable to find group none-such: no matching entries in group file"),
            ),
        ] {
            let message = check(own, user).err().map(|failure| failure.message);
            assert_eq!(message.as_deref(), expected, "{user}");
        }
    }
}
