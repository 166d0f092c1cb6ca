//! Which user a process is, by the image's /etc/passwd and /etc/group. The image has written these
//! files, so only regular files are read, only up to a size, and nothing in them is passed on
//! unparsed (CVE-2026-47262, CVE-2022-4318).

use std::{fs::File, io::Read, os::fd::BorrowedFd, path::Path};

use berth_shim::{
    record::{ResolvedUser, UNKNOWN_GROUP, UNKNOWN_USER},
    spec::{Identity, User},
};
use rustix::{
    fs::{OFlags, ResolveFlags},
    io::Errno,
};

use crate::{
    error::{Result, Step, failure, invalid},
    mount::inside::open_below,
};

/// The longest file that is read, in bytes. containerd has the same limit, and no real file comes
/// near it.
const MAX_FILE: u64 = 10 << 20;
/// The highest id that is allowed, as in the kubelet, Docker and containerd. To setresuid(2)
/// 4294967295 means "leave it as it is", so a user with that id would stay root.
const MAX_ID: u32 = i32::MAX as u32;

/// A user in numbers, and the home directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Login {
    pub user: ResolvedUser,
    pub home: String,
}

/// Resolves `user` by the files below `root`. A number needs no entry there, a name does.
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
        (Identity::Name(name), None) => {
            return Err(invalid(UNKNOWN_USER, name));
        }
    };
    let gid = match &user.group {
        None => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(Identity::Id(gid)) => *gid,
        Some(Identity::Name(wanted)) => group
            .lines()
            .filter_map(GroupEntry::parse)
            .find(|entry| entry.name == wanted)
            .map(|entry| entry.gid)
            .ok_or_else(|| invalid(UNKNOWN_GROUP, wanted))?,
    };
    let by_name = user.group_names.iter().map(|wanted| {
        let mut entries = group.lines().filter_map(GroupEntry::parse);
        let entry = entries.find(|entry| entry.name == wanted);
        let missing = || invalid(UNKNOWN_GROUP, wanted);
        entry.map(|entry| entry.gid).ok_or_else(missing)
    });
    // The primary group is one of them, as with initgroups(3). The conformance tests of the kubelet
    // expect that under both policies of KEP 3619.
    let mut groups = by_name.collect::<Result<Vec<_>>>()?;
    groups.extend(&user.supplementary);
    groups.push(gid);
    if user.merge_groups {
        let entries = group.lines().filter_map(GroupEntry::parse);
        // A uid without an entry in /etc/passwd has no name, and so is no group's member.
        let own = entries.filter(|entry| name.is_some_and(|name| entry.has_member(name)));
        groups.extend(own.map(|entry| entry.gid));
    }
    groups.sort_unstable();
    groups.dedup();
    if let Some(id) = groups.iter().chain([&uid]).find(|id| **id > MAX_ID) {
        return Err(failure(format!("user or group {id} is out of range (0 to {MAX_ID})"), ""));
    }
    // A control character could confuse whatever shows or parses the environment (CVE-2022-4318).
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| home.starts_with('/') && !home.chars().any(char::is_control));
    Ok(Login { user: ResolvedUser { uid, gid, groups }, home: home.unwrap_or("/").to_owned() })
}

/// `env` with the HOME of a user, unless it has one: a program finds its own directory without
/// reading /etc/passwd.
pub(crate) fn with_home(env: &[String], home: &str) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
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

    fn has_member(&self, name: &str) -> bool {
        self.members.split(',').any(|member| member == name)
    }
}

/// Reads a file of the image. One that is missing is empty, and so is anything that is no regular
/// file: /dev/null, behind which it may be hidden, or a trap.
fn read(root: BorrowedFd<'_>, path: &Path) -> Result<String> {
    // O_NONBLOCK: opening a FIFO would block until somebody writes to it.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match open_below(root, path, OFlags::NONBLOCK, resolve) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(String::new()),
        Err(error) => return Err(error).step_on("open", path),
    };
    let metadata = file.metadata().step_on("stat", path)?;
    if !metadata.is_file() {
        return Ok(String::new());
    }
    if metadata.len() > MAX_FILE {
        return Err(invalid("larger than 10 MiB:", path));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).step_on("read", path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\n1000:x:7:7::/:\n\
        bob:x:1000:1001::/home/bob:/bin/sh\nevil:x:5:5::/a\tb:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:bob,alice\nwheel:x:10:alice\nextra:x:60:alice,bob\n";

    fn user(user: Identity, group: Option<Identity>, merge_groups: bool) -> User {
        User { user, group, supplementary: vec![9], merge_groups, group_names: vec![] }
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
            assert_eq!(
                login,
                Login { user: ResolvedUser { uid, gid, groups }, home: home.into() },
                "{asked:?}"
            );
        }
    }

    #[test]
    fn ids_that_mean_something_else_to_the_kernel_are_errors() {
        use Identity::{Id, Name};
        let (passwd, group) = (
            "a:x:4294967295:1::/:\nb:x:1:4294967295::/:\nc:x:2147483648:1::/:\n\
             d:x:2147483647:1::/:\n",
            "g:x:4294967295:d\n",
        );
        let named = |name: &str| Name(name.to_owned());
        for asked in [
            user(named("a"), None, false),
            user(named("b"), None, false),
            user(named("c"), None, false),
            user(named("d"), None, true),
            user(named("d"), Some(named("g")), false),
            user(Id(u32::MAX), None, false),
            user(Id(0), Some(Id(MAX_ID + 1)), false),
            User { supplementary: vec![u32::MAX], ..user(Id(0), None, false) },
        ] {
            let error = resolve_in(&asked, passwd, group).unwrap_err();
            assert!(error.step.contains("out of range"), "{asked:?}: {error}");
        }
        assert_eq!(
            resolve_in(&user(named("d"), None, false), passwd, group).unwrap().user.uid,
            MAX_ID
        );
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(
            resolve_in(&user(Identity::Name("eve".into()), None, true), PASSWD, GROUP)
                .unwrap_err()
                .path
                == "eve"
        );
        let group = Some(Identity::Name("eve".into()));
        assert!(
            resolve_in(&user(Identity::Id(0), group, true), PASSWD, GROUP)
                .unwrap_err()
                .step
                .contains("group")
        );
    }
}
