//! The filesystem of the root directory: overlays and idmapped mounts, space and inodes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use berth_node::shim;
use rustix::{
    fs::{Mode, OFlags, openat, statvfs},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use crate::finding::Finding;

/// Below this share of free space the kubelet removes images that nobody uses, in percent.
const LITTLE: u64 = 15;
/// Below this the daemon itself has no room for its records, in bytes.
const NO_ROOM: u64 = 64 << 20;
/// Below this share of free inodes the kubelet evicts pods, in percent.
const FEW: u64 = 5;

pub(crate) struct Facts {
    root: PathBuf,
    kind: String,
    /// `None`: not tried, for want of privileges.
    overlay: Option<Result<(), String>>,
    idmapped: Option<Result<(), String>>,
    /// Free and all bytes.
    space: (u64, u64),
    /// Free and all inodes; none at all where a filesystem makes them as it needs them.
    inodes: (u64, u64),
}

/// A directory that is removed with whatever is in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What could not be removed is named so that everyone sees whose it was.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The root need not exist: what counts is the filesystem that it will be on.
pub(crate) async fn look(root: &Path, tries: bool) -> Facts {
    let on = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let (space, inodes) = match statvfs(on) {
        Ok(found) => (
            (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize),
            (found.f_favail, found.f_files),
        ),
        Err(_) => ((0, 0), (0, 0)),
    };
    let (overlay, idmapped) = match tries {
        true => {
            let (overlay, idmapped) = try_mounts(on).await;
            (Some(overlay), Some(idmapped))
        }
        false => (None, None),
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let on = fs::canonicalize(on).unwrap_or_else(|_| on.to_owned());
    Facts { root: root.to_owned(), kind: kind(&mounts, &on), overlay, idmapped, space, inodes }
}

/// The type of the filesystem that `path` is on (proc_pid_mountinfo(5)): that of the longest mount
/// point that leads to it, and the last one there.
fn kind(mounts: &str, path: &Path) -> String {
    let mut best = (0, "unknown");
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let at = left.split(' ').nth(4).unwrap_or_default();
        if path.starts_with(at) && at.len() >= best.0 {
            best = (at.len(), right.split(' ').next().unwrap_or_default());
        }
    }
    best.1.to_owned()
}

async fn try_mounts(on: &Path) -> (Result<(), String>, Result<(), String>) {
    let scratch = Scratch(on.join(format!(".berth-check.{}", std::process::id())));
    if let Err(error) = fs::create_dir(&scratch.0) {
        let text = format!("make {}: {error}", scratch.0.display());
        return (Err(text.clone()), Err(text));
    }
    let overlay = try_overlay(&scratch.0).map_err(|error| error.to_string());
    let probe = async {
        let program = shim::Program::load(&shim::Program::path()?)?;
        program.probe(&scratch.0).await
    };
    (overlay, probe.await.map_err(|error| format!("{error:#}")))
}

/// Makes an overlay that is attached nowhere, and a file in it.
fn try_overlay(scratch: &Path) -> io::Result<()> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, name) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        fs::create_dir(scratch.join(name))?;
        fsconfig_set_string(&overlay, key, scratch.join(name))?;
    }
    fsconfig_create(&overlay)?;
    let mounted = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(&mounted, "file", flags, Mode::RUSR)?;
    Ok(())
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let on = format!("{} is on {}", facts.root.display(), facts.kind);
    let mut findings = Vec::new();
    match &facts.overlay {
        Some(Ok(())) => findings.push(Finding::ok("overlay", on)),
        Some(Err(error)) => findings.push(Finding::missing(
            "overlay",
            format!("{on}, which takes no overlay: {error}"),
            "modprobe overlay, or [root] on ext4, Btrfs, or XFS with ftype=1 (berthd --root DIR)",
        )),
        None => {}
    }
    match &facts.idmapped {
        Some(Ok(())) => {
            findings.push(Finding::ok("user namespaces", format!("idmapped on {}", facts.kind)));
        }
        Some(Err(error)) => findings.push(Finding::warning(
            "user namespaces",
            format!("pods with hostUsers: false are refused: {error}"),
            "Linux 6.5 and a root on ext4, Btrfs, XFS or tmpfs",
        )),
        None => {}
    }
    findings.extend([space(facts), inodes(facts)]);
    findings
}

fn space(facts: &Facts) -> Finding {
    let (free, all) = facts.space;
    let percent = percent(facts.space);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let found = format!("{:.1} of {:.1} GiB free ({percent} %)", gib(free), gib(all));
    let remedy = "crictl rmi --prune, or a larger disk (berthd --root DIR)";
    match percent {
        _ if free < NO_ROOM => Finding::missing("disk space", found, remedy),
        ..LITTLE => Finding::warning(
            "disk space",
            format!("{found}: the kubelet removes images below {LITTLE} %"),
            remedy,
        ),
        _ => Finding::ok("disk space", found),
    }
}

fn inodes(facts: &Facts) -> Finding {
    let (free, all) = facts.inodes;
    let percent = percent(facts.inodes);
    let found = match all {
        0 => format!("{} makes them as it needs them", facts.kind),
        _ => format!("{free} of {all} free ({percent} %)"),
    };
    match all > 0 && percent < FEW {
        true => Finding::warning(
            "inodes",
            format!("{found}: the kubelet evicts pods below {FEW} %"),
            "crictl rmi --prune, or a filesystem with more of them (mke2fs -N)",
        ),
        false => Finding::ok("inodes", found),
    }
}

fn percent((free, all): (u64, u64)) -> u64 {
    (u128::from(free) * 100 / u128::from(all.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{self, Missing, Ok as Good, Warning};

    fn facts() -> Facts {
        Facts {
            root: "/var/lib/berth".into(),
            kind: "ext4".to_owned(),
            overlay: Some(Ok(())),
            idmapped: Some(Ok(())),
            space: (50 << 30, 100 << 30),
            inodes: (500, 1000),
        }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        judge(facts).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn each_lack_has_its_weight() {
        let lack = || Some(Err("EINVAL".to_owned()));
        assert_eq!(verdicts(&facts()), [Good; 4]);
        assert_eq!(verdicts(&Facts { overlay: None, idmapped: None, ..facts() }), [Good; 2]);
        for (facts, expected) in [
            (Facts { overlay: lack(), ..facts() }, [Missing, Good, Good, Good]),
            (Facts { idmapped: lack(), ..facts() }, [Good, Warning, Good, Good]),
            (Facts { space: (14 << 30, 100 << 30), ..facts() }, [Good, Good, Warning, Good]),
            (Facts { space: (1 << 20, 100 << 30), ..facts() }, [Good, Good, Missing, Good]),
            (Facts { inodes: (40, 1000), ..facts() }, [Good, Good, Good, Warning]),
            (Facts { inodes: (0, 0), ..facts() }, [Good; 4]),
        ] {
            assert_eq!(verdicts(&facts), expected);
        }
    }

    #[test]
    fn a_filesystem_is_that_of_the_longest_mount_point() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /var rw shared:1 - xfs /dev/b rw\n\
                      3 1 0:3 / /variety rw - tmpfs t rw\n4 2 0:4 / /var rw - btrfs /dev/c rw\n";
        for (path, expected) in
            [("/var/lib", "btrfs"), ("/variety", "tmpfs"), ("/vary", "ext4"), ("/", "ext4")]
        {
            assert_eq!(kind(mounts, Path::new(path)), expected, "{path}");
        }
    }
}
