//! Who the process is, by the image's /etc/passwd and /etc/group. The image wrote these files: they are read bounded, regular
//! files only, and what they say is data (CVE-2026-47262, CVE-2022-4318).

use std::{fs::File, io::Read, os::fd::BorrowedFd, path::Path};

use berth_shim::{
    record::ResolvedUser,
    spec::{Identity, User},
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::error::{Result, Step, failure};

/// As containerd caps them: no real file comes near.
const MAX_FILE: u64 = 10 << 20;

/// What was asked for, in numbers, and the user's home directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Login {
    pub user: ResolvedUser,
    pub home: String,
}

/// Resolves `user` below `root`. Numbers need no entry, names do.
pub(crate) fn resolve(root: BorrowedFd<'_>, user: &User) -> Result<Login> {
    resolve_in(user, &read(root, Path::new("/etc/passwd"))?, &read(root, Path::new("/etc/group"))?)
}

fn resolve_in(user: &User, passwd: &str, group: &str) -> Result<Login> {
    let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|entry| match &user.user {
        Identity::Id(uid) => entry.uid == *uid,
        Identity::Name(name) => entry.name == name,
    });
    let (uid, name) = match (&user.user, &entry) {
        (_, Some(entry)) => (entry.uid, Some(entry.name)),
        (Identity::Id(uid), None) => (*uid, None),
        (Identity::Name(name), None) => return Err(failure("no such user in /etc/passwd of the image:", name)),
    };
    let gid = match &user.group {
        None => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(Identity::Id(gid)) => *gid,
        Some(Identity::Name(wanted)) => group
            .lines()
            .filter_map(GroupEntry::parse)
            .find(|entry| entry.name == wanted)
            .map(|entry| entry.gid)
            .ok_or_else(|| failure("no such group in /etc/group of the image:", wanted))?,
    };
    // The primary group is among them, as initgroups(3) has it and conformance tests expect under both policies.
    let mut groups = user.supplementary.clone();
    groups.push(gid);
    if user.merge_groups {
        let member =
            |entry: &GroupEntry<'_>| name.is_some_and(|name| entry.members.split(',').any(|member| member == name));
        groups.extend(group.lines().filter_map(GroupEntry::parse).filter(member).map(|entry| entry.gid));
    }
    groups.sort_unstable();
    groups.dedup();
    let home =
        entry.map(|entry| entry.home).filter(|home| home.starts_with('/') && !home.chars().any(char::is_control));
    Ok(Login { user: ResolvedUser { uid, gid, groups }, home: home.unwrap_or("/").to_owned() })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or("") })
    }
}

/// A missing file is an empty one; so is what is no file at all, be it hidden behind /dev/null or a trap.
fn read(root: BorrowedFd<'_>, path: &Path) -> Result<String> {
    // O_NONBLOCK: opening a FIFO that the image put there must not hang.
    let (flags, resolve) = (OFlags::NONBLOCK | OFlags::CLOEXEC, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    let file = match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(String::new()),
        Err(error) => return Err(error).step_on("open", path),
    };
    let metadata = file.metadata().step_on("stat", path)?;
    if !metadata.is_file() {
        return Ok(String::new());
    }
    if metadata.len() > MAX_FILE {
        return Err(failure("larger than 10 MiB:", path));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).step_on("read", path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\n1000:x:7:7::/:\nbob:x:1000:1001::/home/bob:/bin/sh\nevil:x:5:5::/a\tb:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:bob,alice\nwheel:x:10:alice\nextra:x:60:alice,bob\n";

    fn user(user: Identity, group: Option<Identity>, merge_groups: bool) -> User {
        User { user, group, supplementary: vec![9], merge_groups }
    }

    #[test]
    fn users_resolve_as_the_kubelet_expects() {
        use Identity::{Id, Name};
        for (asked, uid, gid, groups, home) in [
            (user(Id(1000), None, false), 1000, 1001, vec![9, 1001], "/home/bob"),
            (user(Id(1000), None, true), 1000, 1001, vec![9, 50, 60, 1001], "/home/bob"),
            (user(Name("bob".into()), Some(Id(3)), true), 1000, 3, vec![3, 9, 50, 60], "/home/bob"),
            (user(Id(4242), None, true), 4242, 0, vec![0, 9], "/"),
            (user(Id(5), None, false), 5, 5, vec![5, 9], "/"),
            (user(Id(0), Some(Name("staff".into())), false), 0, 50, vec![9, 50], "/root"),
        ] {
            let login = resolve_in(&asked, PASSWD, GROUP).unwrap();
            assert_eq!(login, Login { user: ResolvedUser { uid, gid, groups }, home: home.into() }, "{asked:?}");
        }
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(resolve_in(&user(Identity::Name("eve".into()), None, true), PASSWD, GROUP).unwrap_err().path == "eve");
        let group = Some(Identity::Name("eve".into()));
        assert!(resolve_in(&user(Identity::Id(0), group, true), PASSWD, GROUP).unwrap_err().step.contains("group"));
    }
}
