//! `docker diff`: what a container has changed in its image, from the upper directory of its
//! overlay and the layers below.
//!
//! Overlayfs hides a file by a character device 0/0, and what is below a directory by the attribute
//! `trusted.overlay.opaque` (Documentation/filesystems/overlayfs.rst). A file in the upper directory
//! need not be a change: whoever opens a file for writing has it copied there.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, openat2, statat},
    io::Errno,
};
use serde::{Serialize, Serializer};

/// A path that is not as in the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    /// Absolute, within the container. In JSON, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    pub kind: Kind,
}

fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Changed = 0,
    Added = 1,
    Deleted = 2,
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(*self as u8)
    }
}

/// The directories of an overlay. Nothing in them is followed, so that links of the container lead
/// nowhere.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    pub upper: BorrowedFd<'a>,
    /// Topmost first.
    pub lower: &'a [BorrowedFd<'a>],
}

/// What one layer says of a path.
enum Found {
    File(Stat),
    /// The layers below are not asked.
    Hidden,
    Absent,
}

impl Overlay<'_> {
    /// All changes, sorted by path. A directory counts as changed if something in it is. `places` are
    /// the paths, relative to the root, on which the runtime has mounted something: the container has
    /// them, wherever they were made. Blocks.
    ///
    /// # Errors
    /// Errors of the filesystem. What vanishes while it is read is left out.
    pub fn changes(&self, places: &[PathBuf]) -> io::Result<Vec<Change>> {
        let mut changes = BTreeMap::new();
        let mut left = vec![PathBuf::new()];
        while let Some(directory) = left.pop() {
            for name in names(self.upper, &directory)? {
                let path = directory.join(name);
                let Some(found) = stat(self.upper, &path)? else { continue };
                let below = self.find_below(&path)?;
                match kind(&found, below.as_ref()) {
                    // A whiteout that hides nothing is left by a file that was made and removed.
                    Some(Kind::Deleted) if below.is_none() => continue,
                    Some(kind) => note(&mut changes, &path, kind),
                    None => {}
                }
                if is_directory(&found) {
                    let was_directory = below.as_ref().is_some_and(is_directory);
                    if was_directory && is_opaque(self.upper, &path)? {
                        self.note_hidden(&path, &mut changes)?;
                    }
                    left.push(path);
                }
            }
        }
        for place in places.iter().flat_map(|place| place.ancestors()) {
            let is_there = place.as_os_str().is_empty() || self.find_below(place)?.is_some();
            if !is_there {
                note(&mut changes, place, Kind::Added);
            }
        }
        let absolute = |path: PathBuf| Path::new("/").join(path);
        let changes = changes.into_iter();
        Ok(changes.map(|(path, kind)| Change { path: absolute(path), kind }).collect())
    }

    /// Notes what an opaque directory hides of the layers below and has not itself.
    fn note_hidden(&self, path: &Path, changes: &mut BTreeMap<PathBuf, Kind>) -> io::Result<()> {
        let mut hidden = BTreeSet::new();
        for layer in self.lower {
            match look(*layer, path)? {
                Found::File(found) if is_directory(&found) => hidden.extend(names(*layer, path)?),
                Found::File(_) | Found::Hidden => break,
                Found::Absent => {}
            }
        }
        for name in hidden {
            let child = path.join(name);
            if stat(self.upper, &child)?.is_none() && self.find_below(&child)?.is_some() {
                note(changes, &child, Kind::Deleted);
            }
        }
        Ok(())
    }

    /// The file at `path` in the image.
    fn find_below(&self, path: &Path) -> io::Result<Option<Stat>> {
        for layer in self.lower {
            match look(*layer, path)? {
                Found::File(found) => return Ok(Some(found)),
                Found::Hidden => return Ok(None),
                Found::Absent => {}
            }
        }
        Ok(None)
    }
}

/// Notes a change, and that the directories above are changed by it.
fn note(changes: &mut BTreeMap<PathBuf, Kind>, path: &Path, kind: Kind) {
    changes.insert(path.to_owned(), kind);
    for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        changes.entry(parent.to_owned()).or_insert(Kind::Changed);
    }
}

/// What has become of a file. `None` if it is as it was.
fn kind(found: &Stat, below: Option<&Stat>) -> Option<Kind> {
    if is_whiteout(found) {
        return Some(Kind::Deleted);
    }
    let Some(below) = below else { return Some(Kind::Added) };
    let of_all = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let of_files = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    // The size and the time of a directory change with its entries, which are listed themselves.
    let is_same = of_all(found) == of_all(below)
        && (is_directory(found) || of_files(found) == of_files(below));
    (!is_same).then_some(Kind::Changed)
}

/// What a layer has at `path`, or above it.
fn look(layer: BorrowedFd<'_>, path: &Path) -> io::Result<Found> {
    let mut hides = false;
    let ancestors: Vec<&Path> = path.ancestors().collect();
    for part in ancestors.into_iter().rev().filter(|part| !part.as_os_str().is_empty()) {
        let found = match stat(layer, part)? {
            None if hides => return Ok(Found::Hidden),
            None => return Ok(Found::Absent),
            Some(found) if is_whiteout(&found) => return Ok(Found::Hidden),
            Some(found) if part == path => return Ok(Found::File(found)),
            Some(found) => found,
        };
        if !is_directory(&found) {
            return Ok(Found::Hidden);
        }
        hides |= is_opaque(layer, part)?;
    }
    Ok(Found::Absent)
}

fn is_directory(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

fn is_whiteout(found: &Stat) -> bool {
    let kind = FileType::from_raw_mode(found.st_mode);
    kind == FileType::CharacterDevice && found.st_rdev == 0
}

fn is_opaque(layer: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    let Some(directory) = open(layer, path)? else { return Ok(false) };
    let mut value = [0; 1];
    // It is absent nearly everywhere; that some filesystems have no attributes is the same.
    match fgetxattr(&directory, "trusted.overlay.opaque", &mut value[..]) {
        Ok(length) => Ok(length == 1 && value[0] == b'y'),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `None` if there is no such file.
fn stat(layer: BorrowedFd<'_>, path: &Path) -> io::Result<Option<Stat>> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let Some(parent) = open(layer, parent)? else { return Ok(None) };
    let name = path.file_name().unwrap_or(OsStr::new("."));
    match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a directory. `None` if there is none.
fn open(layer: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(layer, path, flags, Mode::empty(), resolve) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn names(layer: BorrowedFd<'_>, path: &Path) -> io::Result<Vec<OsString>> {
    let Some(directory) = open(layer, path)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    let mut entries = Dir::new(directory)?;
    while let Some(entry) = entries.read() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::{fd::AsFd, unix::fs::symlink},
    };

    use rustix::fs::{CWD, XattrFlags, makedev, mknodat, setxattr};

    use super::*;

    struct Layer(tempfile::TempDir);

    impl Layer {
        /// Directories end with a slash, whiteouts with ` -`, and opaque directories with ` =`.
        fn new(files: &[&str]) -> Self {
            let layer = Self(tempfile::tempdir().unwrap());
            for file in files {
                let path = layer.0.path().join(file.trim_end_matches(['-', '=', ' ']));
                if file.ends_with(" -") {
                    let kind = FileType::CharacterDevice;
                    mknodat(CWD, &path, kind, Mode::empty(), makedev(0, 0)).unwrap();
                } else if file.ends_with(['/', '=']) {
                    fs::create_dir_all(&path).unwrap();
                } else {
                    fs::write(&path, *file).unwrap();
                }
                if file.ends_with(" =") {
                    let key = "trusted.overlay.opaque";
                    setxattr(&path, key, b"y", XattrFlags::empty()).unwrap();
                }
            }
            layer
        }

        /// Gives a file the time of the one in another layer, as a copy of overlayfs has it.
        fn copy_up(&self, name: &str, from: &Self) {
            let [own, other] = [self, from].map(|layer| layer.0.path().join(name));
            let modified = fs::metadata(other).unwrap().modified().unwrap();
            File::options().write(true).open(own).unwrap().set_modified(modified).unwrap();
        }
    }

    fn play(upper: &Layer, lower: &[&Layer]) -> Vec<String> {
        play_mounted(upper, lower, &[])
    }

    fn play_mounted(upper: &Layer, lower: &[&Layer], places: &[&str]) -> Vec<String> {
        let upper = File::open(upper.0.path()).unwrap();
        let lower: Vec<File> =
            lower.iter().map(|layer| File::open(layer.0.path()).unwrap()).collect();
        let lower: Vec<BorrowedFd<'_>> = lower.iter().map(AsFd::as_fd).collect();
        let overlay = Overlay { upper: upper.as_fd(), lower: &lower };
        let places: Vec<PathBuf> = places.iter().map(PathBuf::from).collect();
        let changes = overlay.changes(&places).unwrap();
        let letter = |kind| match kind {
            Kind::Changed => 'C',
            Kind::Added => 'A',
            Kind::Deleted => 'D',
        };
        changes
            .iter()
            .map(|change| format!("{} {}", letter(change.kind), change.path.display()))
            .collect()
    }

    #[test]
    fn files_are_added_changed_and_deleted() {
        let image = Layer::new(&["etc/", "etc/passwd", "etc/group", "etc/same", "tmp/"]);
        let upper = Layer::new(&["etc/", "etc/test.conf", "etc/passwd", "etc/group -", "etc/same"]);
        upper.copy_up("etc/same", &image);
        fs::write(upper.0.path().join("etc/passwd"), "longer than it was").unwrap();
        assert_eq!(
            play(&upper, &[&image]),
            ["C /etc", "D /etc/group", "C /etc/passwd", "A /etc/test.conf"]
        );
    }

    #[test]
    fn the_place_of_a_mount_is_added_unless_the_image_has_it() {
        let image = Layer::new(&["var/lib/x/", "tmp/"]);
        let upper = Layer::new(&[]);
        assert_eq!(
            play_mounted(&upper, &[&image], &["var/lib/x", "var/lib/y", "new/place", "tmp"]),
            ["A /new", "A /new/place", "C /var", "C /var/lib", "A /var/lib/y"]
        );
    }

    #[test]
    fn parents_are_changed_and_what_is_as_it_was_is_not() {
        let image = Layer::new(&["var/lib/x/", "usr/", "usr/file"]);
        let upper = Layer::new(&["var/lib/x/", "var/lib/x/new", "usr/", "usr/file", "gone -"]);
        upper.copy_up("usr/file", &image);
        assert_eq!(
            play(&upper, &[&image]),
            ["C /var", "C /var/lib", "C /var/lib/x", "A /var/lib/x/new"]
        );
    }

    #[test]
    fn an_opaque_directory_has_deleted_what_it_hides() {
        let base = Layer::new(&["d/", "d/kept", "d/gone", "d/earlier", "d/sub/", "d/sub/x"]);
        let middle = Layer::new(&["d/", "d/earlier -", "d/middle"]);
        let upper = Layer::new(&["d =", "d/kept"]);
        upper.copy_up("d/kept", &base);
        assert_eq!(
            play(&upper, &[&middle, &base]),
            ["C /d", "D /d/gone", "D /d/middle", "D /d/sub"]
        );
        // In an image, a layer may hide what is below it as well.
        let opaque = Layer::new(&["d =", "d/middle"]);
        let upper = Layer::new(&["d/", "d/gone"]);
        assert_eq!(play(&upper, &[&opaque, &base]), ["C /d", "A /d/gone"]);
    }

    #[test]
    fn links_are_not_followed() {
        let image = Layer::new(&["a/", "a/file"]);
        let upper = Layer::new(&[]);
        symlink("/etc", upper.0.path().join("link")).unwrap();
        symlink("/", upper.0.path().join("a")).unwrap();
        assert_eq!(play(&upper, &[&image]), ["C /a", "A /link"]);
    }

    #[test]
    fn kinds_are_numbers_in_json() {
        let change = Change { path: "/x".into(), kind: Kind::Deleted };
        assert_eq!(serde_json::to_string(&change).unwrap(), r#"{"Path":"/x","Kind":2}"#);
    }
}
