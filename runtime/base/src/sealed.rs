//! Programs that outlive the daemon, run from a copy in memory.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// How often a seal that the kernel refuses for the moment is tried again.
const SEAL_ATTEMPTS: u32 = 20;
/// Bytes that are compared at a time.
const CHUNK: usize = 64 << 10;

/// A sealed copy of an executable in memory, made once. A container cannot overwrite it through
/// /proc/PID/exe of a process that is root on the host (CVE-2019-5736), and a package upgrade does
/// not change what a daemon that runs goes on to start.
#[derive(Clone, Debug)]
pub struct Sealed {
    memfd: Arc<OwnedFd>,
}

impl Sealed {
    /// Copies the executable at `path`.
    ///
    /// # Errors
    /// It cannot be read, or there is no memory for it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let memfd =
            memfd_create(name.as_ref(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
                .context("memfd_create")?;
        let mut file = fs::File::from(memfd);
        file.write_all(&bytes).with_context(|| format!("copy {name}"))?;
        let seals = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE;
        seal(&file, seals).with_context(|| format!("seal the copy of {name}"))?;
        // execve(2) fails with ETXTBSY for a file that is open for writing, so it is opened again.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let memfd = fs::File::open(path).with_context(|| format!("reopen the copy of {name}"))?;
        Ok(Self { memfd: Arc::new(memfd.into()) })
    }

    /// Where an executable of berth is: beside the daemon's own.
    ///
    /// # Errors
    /// The daemon's own cannot be found.
    pub fn beside_own(name: &str) -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe().context("find own executable")?;
        Ok(own.with_file_name(name))
    }

    /// What is to be executed by a child of this process.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.memfd.as_raw_fd()))
    }

    /// Whether an executable, such as that of another process, is a copy of the same program.
    ///
    /// # Errors
    /// One of the two cannot be read.
    pub fn is_copied_by(&self, executable: &Path) -> io::Result<bool> {
        let (mut own, mut other) = (fs::File::open(self.path())?, fs::File::open(executable)?);
        if own.metadata()?.len() != other.metadata()?.len() {
            return Ok(false);
        }
        let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
        loop {
            let length = own.read(&mut left)?;
            if length == 0 {
                return Ok(true);
            }
            match other.read_exact(&mut right[..length]) {
                Ok(()) if left[..length] == right[..length] => {}
                Ok(()) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Seals a file in memory. On a busy machine another processor may hold on to pages that were just
/// written, and the kernel, which gives it a moment, then refuses with EBUSY (mm/memfd.c).
fn seal(file: &fs::File, seals: SealFlag) -> nix::Result<()> {
    let mut attempt = 1;
    loop {
        match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
            Err(Errno::EBUSY) if attempt < SEAL_ATTEMPTS => attempt += 1,
            sealed => return sealed.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_told_from_another_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, text) in
            [("one", "1234"), ("same", "1234"), ("other", "1235"), ("long", "12345")]
        {
            fs::write(path(name), text).unwrap();
        }
        let one = Sealed::load(&path("one")).unwrap();
        assert!(one.is_copied_by(&path("same")).unwrap());
        assert!(!one.is_copied_by(&path("other")).unwrap());
        assert!(!one.is_copied_by(&path("long")).unwrap());
        assert!(fs::write(one.path(), "x").is_err(), "it is sealed");
    }
}
