//! Extended attributes of files, for tars.

use std::os::fd::AsFd;

use rustix::{
    fs::{fgetxattr, flistxattr},
    io::Errno,
};

/// The key of an extended attribute in a PAX header, in the form of GNU tar and of docker.
const XATTR: &str = "SCHILY.xattr.";
/// The most bytes of an attribute and of the list of names (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 64 << 10;
const OPAQUE: &str = "trusted.overlay.opaque";

/// The names of a file's attributes. What cannot be read is none.
pub(super) struct Attributes<F> {
    file: F,
    names: Vec<u8>,
}

impl<F: AsFd> Attributes<F> {
    pub(super) fn read(file: F) -> Self {
        let mut names = vec![0; MAX_XATTR];
        let length = flistxattr(&file, &mut names[..]).unwrap_or(0);
        names.truncate(length);
        Self { file, names }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.filter_map(|name| std::str::from_utf8(name).ok())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names().any(|own| own == name)
    }

    /// Whether overlayfs shows nothing of the layers below in this directory.
    pub(super) fn is_opaque(&self) -> bool {
        self.has(OPAQUE) && self.value(OPAQUE).is_ok_and(|value| value == b"y")
    }

    /// As PAX records: capabilities, as dockerd sends them, and those of users.
    pub(super) fn records(&self) -> Vec<(String, Vec<u8>)> {
        let wanted = self.names().filter(|name| {
            *name == "security.capability"
                || name.starts_with("user.") && !name.starts_with("user.overlay.")
        });
        let mut xattrs = Vec::new();
        for name in wanted {
            if let Ok(value) = self.value(name) {
                let is_capability = name == "security.capability";
                let value = if is_capability { plain_capability(value) } else { value };
                xattrs.push((format!("{XATTR}{name}"), value));
            }
        }
        // A filesystem lists them in an order of its own.
        xattrs.sort_unstable();
        xattrs
    }

    fn value(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; MAX_XATTR];
        let length = fgetxattr(&self.file, name, &mut value[..])?;
        value.truncate(length);
        Ok(value)
    }
}

/// Revision 3 names the root of a user namespace, which means nothing elsewhere: becomes revision 2
/// (`VFS_CAP_REVISION` of linux/capability.h).
fn plain_capability(mut value: Vec<u8>) -> Vec<u8> {
    const REVISION: usize = 3;
    const LENGTH_2: usize = 20;
    if value.get(REVISION) == Some(&3) && value.len() > LENGTH_2 {
        value[REVISION] = 2;
        value.truncate(LENGTH_2);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_for_the_root_of_any_namespace() {
        let third = [1, 0, 0, 3].into_iter().chain([7; 20]).collect();
        let second: Vec<u8> = [1, 0, 0, 2].into_iter().chain([7; 16]).collect();
        assert_eq!(plain_capability(third), second);
    }
}
