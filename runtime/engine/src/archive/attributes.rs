//! Extended attributes of files that are copied or compared.

use std::{ffi::OsString, os::fd::AsFd};

use rustix::fs::{fgetxattr, flistxattr};

/// The most bytes of an attribute and of the list of names (`XATTR_SIZE_MAX`).
const MAX_LENGTH: usize = 64 << 10;

/// The attributes of a file that an image keeps: capabilities, and those of users. What cannot be read is
/// left out.
pub(super) fn attributes(file: impl AsFd) -> Vec<(OsString, Vec<u8>)> {
    let mut list = vec![0; MAX_LENGTH];
    let length = match flistxattr(&file, &mut list[..]) {
        Ok(0) | Err(_) => return Vec::new(),
        Ok(length) => length,
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let wanted = names.filter_map(|name| std::str::from_utf8(name).ok()).filter(|name| {
        *name == "security.capability"
            || name.starts_with("user.") && !name.starts_with("user.overlay.")
    });
    let read = |name: &str| {
        let mut value = vec![0; MAX_LENGTH];
        let length = fgetxattr(&file, name, &mut value[..]).ok()?;
        value.truncate(length);
        Some((OsString::from(name), value))
    };
    wanted.filter_map(read).collect()
}
