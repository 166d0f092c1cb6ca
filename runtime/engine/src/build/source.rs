//! What `COPY` and `ADD` take: files of the context, of a stage or an image, or from a URL.

use std::{
    ffi::OsString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{FileType, OFlags, fstat},
    io::Errno,
};

use super::{
    failure::{BuildFailure, Result},
    layer::ImageFiles,
};
use crate::{archive, path_match::path_match};

/// A directory with sources.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    /// Of the build's own: what the client has sent, or what was downloaded.
    Own(Arc<OwnedFd>),
    /// The root of an image.
    Image(Arc<ImageFiles>),
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(root) => root.as_fd(),
            Self::Image(files) => files.root(),
        }
    }
}

/// A file or a directory to be copied.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub tree: Tree,
    pub path: String,
    /// By which it is known whether it has changed, see `archive::fingerprint`.
    pub hash: String,
    /// Whether it comes from a URL: such a tar is not unpacked.
    pub is_downloaded: bool,
}

impl Tree {
    /// The sources that a path means, which is a pattern if it has wildcards. Those of a pattern are
    /// sorted; there may be none. Blocks.
    ///
    /// # Errors
    /// In dockerd's words, if it is not there or leads out of the tree.
    pub(crate) fn find(&self, asked: &str) -> Result<Vec<Source>> {
        let path = asked.strip_prefix('/').unwrap_or(asked);
        let path = path.strip_prefix("./").unwrap_or(path);
        if !has_wildcards(path) {
            return Ok(vec![self.source(path)?]);
        }
        let matching = self.matching(path)?;
        matching.iter().map(|path| self.source(path)).collect()
    }

    fn source(&self, path: &str) -> Result<Source> {
        check_path(path)?;
        match open_in_root(self, Path::new(path), OFlags::PATH) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let missing = BuildFailure::new(format!("stat {path}: file does not exist"));
                return Err(match self {
                    Self::Own(_) => missing
                        .during("file not found in build context or excluded by .dockerignore"),
                    Self::Image(_) => missing,
                });
            }
            Err(errno) => return Err(anyhow::Error::new(errno).context(path.to_owned()).into()),
        }
        let hash = archive::fingerprint(self.as_fd(), path).with_context(|| path.to_owned())?;
        Ok(Source { tree: self.clone(), path: path.to_owned(), hash, is_downloaded: false })
    }

    /// The paths that match a pattern. `*` goes over no slash, so that only directories above the
    /// pattern's depth are read.
    fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        let depth = pattern.split('/').count();
        let mut found = Vec::new();
        let mut left = vec![PathBuf::new()];
        while let Some(directory) = left.pop() {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
            let opened = open_in_root(self, &directory, flags).context("open directory")?;
            let names: Vec<OsString> = archive::names(&opened)?;
            for name in names {
                let path = directory.join(name);
                // What is no text cannot be asked for.
                let Some(text) = path.to_str() else { continue };
                if path_match(pattern, text).unwrap_or(false) {
                    found.push(text.to_owned());
                }
                if path.components().count() < depth && is_directory(self, &path) {
                    left.push(path);
                }
            }
        }
        // As a walk comes to them: what is in a directory before what is beside it.
        found.sort_by(|one, other| one.split('/').cmp(other.split('/')));
        Ok(found)
    }
}

fn is_directory(root: &Tree, path: &Path) -> bool {
    let opened = open_in_root(root, path, OFlags::PATH | OFlags::NOFOLLOW);
    let stat = opened.and_then(fstat);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn has_wildcards(path: &str) -> bool {
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Refuses a path that leads out of the context.
///
/// # Errors
/// In dockerd's words.
pub(crate) fn check_path(path: &str) -> Result<()> {
    match leads_out(path) {
        true => {
            let text = format!("forbidden path outside the build context: {path} ()");
            Err(BuildFailure::new(text))
        }
        false => Ok(()),
    }
}

/// Whether `..` leads above the place that a path begins at.
fn leads_out(path: &str) -> bool {
    let mut depth = 0_usize;
    for component in Path::new(path).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => match depth.checked_sub(1) {
                Some(above) => depth = above,
                None => return true,
            },
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn tree(root: &Path) -> Tree {
        Tree::Own(Arc::new(OwnedFd::from(fs::File::open(root).unwrap())))
    }

    #[test]
    fn patterns_match_as_a_walk_comes_to_them() {
        let root = tempfile::tempdir().unwrap();
        for path in ["a/one.txt", "b/two.txt", "a.txt", "b.md", "a/deep/x.txt", "we[ird"] {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), path).unwrap();
        }
        symlink("/etc", root.path().join("out")).unwrap();
        for (asked, expected) in [
            ("*.txt", &["a.txt"][..]),
            ("./*/*.txt", &["a/one.txt", "b/two.txt"]),
            ("/[ab]", &["a", "b"]),
            ("*/passwd", &[]),
            ("?.*", &["a.txt", "b.md"]),
            ("a", &["a"]),
            ("we\\[ird", &[]),
        ] {
            let found = tree(root.path()).find(asked);
            let found = found.map(|all| all.into_iter().map(|source| source.path).collect());
            // A path without wildcards is taken as it is, and this one has a backslash.
            let found: Vec<String> = found.unwrap_or_default();
            assert_eq!(found, expected, "{asked}");
        }
    }

    #[test]
    fn nothing_outside_is_found() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("context")).unwrap();
        fs::write(root.path().join("secret"), "").unwrap();
        symlink("../secret", root.path().join("context/link")).unwrap();
        symlink("/etc/passwd", root.path().join("context/absolute")).unwrap();
        let tree = tree(&root.path().join("context"));
        for (asked, expected) in [
            ("../secret", "forbidden path outside the build context: ../secret ()"),
            ("a/../../secret", "forbidden path outside the build context: a/../../secret ()"),
            (
                "link",
                "file not found in build context or excluded by .dockerignore: stat link: file does \
                 not exist",
            ),
            (
                "absolute",
                "file not found in build context or excluded by .dockerignore: stat absolute: file \
                 does not exist",
            ),
        ] {
            assert_eq!(tree.find(asked).unwrap_err().failure.message, expected);
        }
    }

    #[test]
    fn hashes_are_of_contents_and_modes_but_not_of_times() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/f"), "1").unwrap();
        let tree = tree(root.path());
        let hash = |path: &str| tree.find(path).unwrap()[0].hash.clone();
        let (directory, file) = (hash("d"), hash("d/f"));
        assert!(directory.starts_with("dir:") && file.starts_with("file:"));
        fs::write(root.path().join("d/f"), "1").unwrap();
        assert_eq!((hash("d"), hash("d/f")), (directory.clone(), file.clone()));
        fs::write(root.path().join("d/f"), "2").unwrap();
        assert!(hash("d") != directory && hash("d/f") != file);
    }
}
