//! Paths in a container, as clients write them.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{OFlags, readlinkat},
    io::Errno,
};

/// The most links in one path. The kernel itself follows 40.
const MAX_LINKS: usize = 255;

/// A path below the container's root, and what its end says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContainerPath {
    /// Without `.` and `..`, and without the slash that it begins with. Empty for the root.
    pub relative: PathBuf,
    end: End,
}

/// How a path ends. With either of the last two it means a directory, also behind a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Name,
    Slash,
    Dot,
}

impl ContainerPath {
    /// `..` is taken out of the text, whatever links there are, as dockerd does.
    pub(super) fn new(path: &str) -> Self {
        let end = match path.rsplit('/').next() {
            Some(".") => End::Dot,
            Some("") => End::Slash,
            _ => End::Name,
        };
        let mut relative = PathBuf::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => relative.push(name),
                Component::ParentDir => {
                    relative.pop();
                }
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Self { relative, end }
    }

    /// Whether a link at the end of the path is followed.
    pub(super) fn follows(&self) -> bool {
        self.end != End::Name || self.relative.as_os_str().is_empty()
    }

    /// The last name, in the form of Go's `filepath.Base`.
    pub(super) fn base(&self) -> &OsStr {
        match self.end {
            End::Dot => OsStr::new("."),
            _ => self.relative.file_name().unwrap_or(OsStr::new("/")),
        }
    }

    /// Opens it without the right to read (O_PATH).
    ///
    /// # Errors
    /// The kernel's own; `ENOTDIR` if it should be a directory and is none.
    pub(super) fn open(&self, root: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
        let end = if self.follows() { OFlags::DIRECTORY } else { OFlags::NOFOLLOW };
        open_in_root(root, &self.relative, OFlags::PATH | end)
    }
}

/// The path that `path` leads to when all its links are followed, as text. What does not exist is
/// taken as it is written. Only for showing and comparing: it may be another one a moment later.
///
/// # Errors
/// `ELOOP` if there are too many links; the kernel's own.
pub(super) fn evaluate(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<PathBuf> {
    let mut resolved = PathBuf::new();
    let mut left: Vec<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&name);
        match read_link(root, &next) {
            Ok(Some(target)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = Path::new(OsStr::from_bytes(&target));
                if target.is_absolute() {
                    resolved = PathBuf::new();
                }
                left.extend(names(target));
            }
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR) => resolved = next,
            Err(errno) => return Err(errno),
        }
    }
    Ok(Path::new("/").join(resolved))
}

/// The names of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let components = path.components().rev();
    components
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

/// The target of a link. `None` if the file is not a link.
fn read_link(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<Option<Vec<u8>>> {
    let file = open_in_root(root, path, OFlags::PATH | OFlags::NOFOLLOW)?;
    match readlinkat(&file, "", Vec::new()) {
        Ok(target) => Ok(Some(target.into_bytes())),
        // readlinkat(2) of an empty path says so of everything that is not a link.
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::AsFd, unix::fs::symlink},
    };

    use super::*;

    #[test]
    fn paths_are_cleaned_as_dockerd_does() {
        for (text, relative, base, follows) in [
            ("/etc/passwd", "etc/passwd", "passwd", false),
            ("etc//passwd", "etc/passwd", "passwd", false),
            ("/a/../../b", "b", "b", false),
            ("/etc/", "etc", "etc", true),
            ("/etc/.", "etc", ".", true),
            ("/etc/..", "", "/", true),
            ("/", "", "/", true),
            ("/.", "", ".", true),
            (".", "", ".", true),
            ("", "", "/", true),
        ] {
            let path = ContainerPath::new(text);
            assert_eq!(path.relative, Path::new(relative), "{text}");
            assert_eq!((path.base(), path.follows()), (OsStr::new(base), follows), "{text}");
        }
    }

    #[test]
    fn links_are_evaluated_within_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), "").unwrap();
        for (link, target) in [
            ("up", "../../../.."),
            ("to-b", "a/b"),
            ("absolute", "/a/b"),
            ("chain", "to-b/../b"),
            ("broken", "/a/none/x"),
            ("loop", "loop"),
        ] {
            symlink(target, root.path().join(link)).unwrap();
        }
        let directory = fs::File::open(root.path()).unwrap();
        for (path, expected) in [
            ("a/b/file", Ok("/a/b/file")),
            ("up", Ok("/")),
            ("up/a/b", Ok("/a/b")),
            ("to-b/file", Ok("/a/b/file")),
            ("absolute", Ok("/a/b")),
            ("chain/file", Ok("/a/b/file")),
            ("broken/y", Ok("/a/none/x/y")),
            ("a/b/file/x", Ok("/a/b/file/x")),
            ("loop", Err(Errno::LOOP)),
        ] {
            let evaluated = evaluate(directory.as_fd(), Path::new(path));
            assert_eq!(evaluated, expected.map(PathBuf::from), "{path}");
        }
    }
}
