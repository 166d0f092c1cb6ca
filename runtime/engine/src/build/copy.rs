//! `COPY` and `ADD`: sources into the files of an image.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::Context;
use berth_base::open_in_root::open_in_root;
use berth_image::{Digest, decompressed};
use rustix::fs::{FileType, OFlags, fstat};

use super::{
    failure::{BuildFailure, Result},
    source::Source,
};
use crate::{
    archive::{self, ContainerFiles, CopyOptions, ExtractOptions, Place},
    container::users,
};

/// An instruction whose sources are there.
#[derive(Debug)]
pub(crate) struct Copying {
    pub sources: Vec<Source>,
    /// Absolute. A slash at its end means a directory.
    pub destination: String,
    /// `USER[:GROUP]`; empty for root, or for those of the sources.
    pub chown: String,
    /// Whether the sources keep their owners: those of other images do.
    pub keeps_owners: bool,
    /// Whether tars of the context are unpacked.
    pub unpacks: bool,
}

/// One hash for all sources.
pub(crate) fn hash(sources: &[Source]) -> String {
    match sources {
        [one] => one.hash.clone(),
        several => {
            let hashes: Vec<&str> = several.iter().map(|source| source.hash.as_str()).collect();
            format!("multi:{}", Digest::sha256(hashes.join(",")).hex())
        }
    }
}

/// The destination as an absolute path, with the slash at its end if it has one.
pub(crate) fn destination(working_directory: &str, asked: &str) -> String {
    let path = match asked.starts_with('/') {
        true => return asked.to_owned(),
        false => Path::new("/").join(working_directory.trim_start_matches('/')).join(asked),
    };
    let mut path = path.to_string_lossy().into_owned();
    if asked.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    path
}

impl Copying {
    /// Copies into an image's root. Blocks.
    ///
    /// # Errors
    /// In dockerd's words for an owner that the image does not know; those of the filesystem.
    pub(crate) fn perform(&self, root: BorrowedFd<'_>) -> Result<()> {
        let owner = match (self.chown.as_str(), self.keeps_owners) {
            ("", true) => None,
            ("", false) => Some((0, 0)),
            (chown, _) => Some(owner(root, chown).map_err(|failure| {
                failure.during("unable to convert uid/gid chown string to host mapping")
            })?),
        };
        let options = CopyOptions { owner };
        for source in &self.sources {
            self.one(root, source, options)
                .map_err(|error| BuildFailure::from(error).during("failed to copy files"))?;
        }
        Ok(())
    }

    fn one(
        &self,
        root: BorrowedFd<'_>,
        source: &Source,
        options: CopyOptions,
    ) -> anyhow::Result<()> {
        let to = Place { root, path: &self.destination };
        if self.unpacks
            && !source.is_downloaded
            && let Some(tar) = tar(source)?
        {
            archive::make_directory(to, (0, 0))?;
            let files = ContainerFiles::new(root, &source.path);
            let tar = decompressed(tar)?;
            return Ok(files.extract(&self.destination, tar, ExtractOptions::default())?);
        }
        archive::copy(Place { root: source.tree.as_fd(), path: &source.path }, to, options)
    }
}

/// Opens a source that is a tar, by its content and not its name.
fn tar(source: &Source) -> anyhow::Result<Option<File>> {
    let path = source.path.trim_start_matches('/');
    let open = |flags| open_in_root(&source.tree, Path::new(path), flags);
    let found: OwnedFd = open(OFlags::PATH).context("source path not found")?;
    // Nothing else is opened: a FIFO or a device might do something then.
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let opened = || open(OFlags::RDONLY).map(File::from);
    let Ok(content) = decompressed(opened()?) else { return Ok(None) };
    let is_tar = tar::Archive::new(content)
        .entries()
        .is_ok_and(|mut entries| matches!(entries.next(), Some(Ok(_))));
    Ok(if is_tar { Some(opened()?) } else { None })
}

/// The user and the group of `USER[:GROUP]`. One word is both.
fn owner(root: BorrowedFd<'_>, chown: &str) -> Result<(u32, u32)> {
    let (user, group) = chown.split_once(':').unwrap_or((chown, chown));
    if user.is_empty() || group.is_empty() || group.contains(':') {
        let text = format!("invalid chown string format: {chown}");
        return Err(BuildFailure::new(text));
    }
    let number = |name: &str, file: &str, noun: &str, short: &str| {
        let known = name.parse().ok().or_else(|| users::number_of(root, file, name));
        known.ok_or_else(|| {
            let text = format!("can't find {short} for {noun} {name}: no such {noun}: {name}");
            BuildFailure::new(text)
        })
    };
    let uid = number(user, "etc/passwd", "user", "uid")?;
    let gid = number(group, "etc/group", "group", "gid")?;
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn destinations_are_below_the_working_directory() {
        for (directory, asked, expected) in [
            ("", "a", "/a"),
            ("/w", "a/", "/w/a/"),
            ("/w", ".", "/w/."),
            ("/w", "./", "/w/./"),
            ("/w", "/a", "/a"),
        ] {
            assert_eq!(destination(directory, asked), expected);
        }
    }

    #[test]
    fn one_word_is_user_and_group() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), "web:x:7:8::/:\n").unwrap();
        fs::write(root.path().join("etc/group"), "web:x:9:\n").unwrap();
        let directory = File::open(root.path()).unwrap();
        for (chown, expected) in [
            ("web", Ok((7, 9))),
            ("5", Ok((5, 5))),
            ("web:5", Ok((7, 5))),
            ("5:web", Ok((5, 9))),
            ("none", Err("can't find uid for user none: no such user: none")),
            ("5:none", Err("can't find gid for group none: no such group: none")),
            ("a:b:c", Err("invalid chown string format: a:b:c")),
        ] {
            let found = owner(directory.as_fd(), chown).map_err(|error| error.failure.message);
            assert_eq!(found, expected.map_err(str::to_owned), "{chown}");
        }
    }
}
