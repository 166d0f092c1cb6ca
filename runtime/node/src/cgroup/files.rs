//! Reading the files of a cgroup.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::fs::{Mode, OFlags, openat};

/// The files of one cgroup. The path to it is resolved once, not for each of its files: counters
/// of a hundred containers are read at once.
pub(super) struct Files(OwnedFd);

impl Files {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        // Not through std::fs, which would ask for the file's size first, and the kernel says 0.
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        let mut buffer = [0; 8192];
        loop {
            let read = rustix::io::read(&file, &mut buffer)?;
            text.push_str(str::from_utf8(&buffer[..read]).map_err(|_| io::ErrorKind::InvalidData)?);
            // The kernel fills the buffer as long as there is more, so this was the end, and one
            // system call less.
            if read < buffer.len() {
                return Ok(text);
            }
        }
    }

    /// `None` without a limit, or without such a file.
    pub(super) fn limit(&self, name: &str) -> Option<u64> {
        self.text(name).ok().and_then(|text| parse_limit(&text))
    }
}

pub(super) fn number(path: &Path) -> Option<u64> {
    parse(&fs::read_to_string(path).ok()?)
}

/// `None` without a limit, or without such a file.
pub(super) fn limit(path: &Path) -> Option<u64> {
    parse_limit(&fs::read_to_string(path).ok()?)
}

/// The number after `name` in a file with a line for each name.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

pub(super) fn parse(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// "max" of v2 is not a number.
fn parse_limit(text: &str) -> Option<u64> {
    parse(text).filter(|number| is_limit(*number))
}

/// v1 writes "no limit" as a number near the largest one, rounded down to a page.
pub(super) fn is_limit(number: u64) -> bool {
    number < 1 << 62
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(field("rss 5\nrss_huge 7\ntotal_rss 9\n", "rss"), Some(5));
        assert_eq!(parse_limit("4096\n"), Some(4096));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
    }
}
