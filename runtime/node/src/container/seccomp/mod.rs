//! Seccomp filters: that of the default profile, and those of profiles in files.

mod bpf;
mod default;
mod docker;
mod profile;

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use berth_base::error::{Error, Result};
use berth_shim::spec::Capabilities;

use self::{
    bpf::{ENOSYS, ERRNO, Policy},
    default::default,
    docker::DockerProfile,
    profile::Profile,
};

/// The largest profile that is read; Docker's own has 20 KiB.
const MAX_PROFILE: u64 = 1 << 20;

/// A profile in the form that whoever makes the container needs.
#[derive(Debug)]
pub(super) enum Filter {
    /// `struct sock_filter[]`, for the shim.
    Program(Arc<[u8]>),
    /// `linux.seccomp` of the OCI runtime specification, for another runtime.
    Profile(Vec<u8>),
}

/// Compiled programs by what they were compiled from. Most containers of a node have one of a few
/// profiles.
static COMPILED: Mutex<BTreeMap<Key, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
/// How many programs are kept, at up to 32 KiB each.
const MAX_COMPILED: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// The default profile, for a process with these capabilities.
    Default(u64),
    /// The text of a profile's file. Not its path: the file may change.
    Text(String),
}

/// The program for `key`, compiled unless it is known already.
fn cached(key: Key, compile: impl FnOnce() -> Result<Vec<u8>>) -> Result<Filter> {
    let compiled = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = compiled().get(&key) {
        return Ok(Filter::Program(program.clone()));
    }
    // Without the lock: two containers that compile the same profile at once do no harm.
    let program: Arc<[u8]> = compile()?.into();
    let mut all = compiled();
    if all.len() >= MAX_COMPILED {
        // Only a node whose profiles change all the time gets here.
        all.clear();
    }
    all.insert(key, program.clone());
    Ok(Filter::Program(program))
}

/// The default filter for a process with these capabilities; with `oci`, as JSON for another
/// runtime.
pub(super) fn default_profile(capabilities: Capabilities, oci: bool) -> Result<Filter> {
    if oci {
        let profile = serde_json::to_vec(&default(capabilities)?)
            .context("write the default seccomp profile")?;
        return Ok(Filter::Profile(profile));
    }
    cached(Key::Default(capabilities.granted), || {
        let profile = default(capabilities)?;
        // Calls that are newer than the list do not exist, so that libraries fall back as they do
        // on an old kernel. After EPERM they would give up.
        let policy = Policy { unknown: ERRNO | ENOSYS, ..profile.policy()? };
        Ok(bpf::bytes(&bpf::compile(&policy, &profile.arches())?))
    })
}

/// The filter of a profile in a file (`Localhost`), in the JSON of the OCI runtime specification.
///
/// # Errors
/// `InvalidArgument`: not a regular file, larger than 1 MiB, not a profile, or one that this
/// machine cannot enforce.
pub(super) fn local_profile(path: &Path, oci: bool) -> Result<Filter> {
    let wrong =
        |what: String| Error::invalid(format!("seccomp profile {}: {what}", path.display()));
    let text = read_profile(path).map_err(|error| wrong(error.to_string()))?;
    let text = text.ok_or_else(|| wrong("not a regular file of at most 1 MiB".to_owned()))?;
    let program = cached(Key::Text(text.clone()), || {
        let profile: Profile =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let compiled = profile.policy().and_then(|policy| bpf::compile(&policy, &profile.arches()));
        Ok(bpf::bytes(&compiled.map_err(|error| wrong(error.message))?))
    })?;
    Ok(if oci { Filter::Profile(text.into_bytes()) } else { program })
}

/// The filter of a profile that came with the request, for a process with these capabilities.
///
/// # Errors
/// `InvalidArgument` for what is not a profile, or cannot be enforced here.
pub(super) fn given_profile(text: &str, capabilities: Capabilities, oci: bool) -> Result<Filter> {
    let wrong = |what: String| Error::invalid(format!("seccomp profile: {what}"));
    let profile: DockerProfile =
        serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let profile = profile.resolve(capabilities)?;
    let resolved = serde_json::to_string(&profile).context("write the seccomp profile")?;
    if oci {
        return Ok(Filter::Profile(resolved.into_bytes()));
    }
    cached(Key::Text(resolved), || {
        let compiled = profile.policy().and_then(|policy| bpf::compile(&policy, &profile.arches()));
        Ok(bpf::bytes(&compiled.map_err(|error| wrong(error.message))?))
    })
}

/// The text of a profile. `None` for what is not a regular file, and for one that is too large.
fn read_profile(path: &Path) -> io::Result<Option<String>> {
    // To open a FIFO waits for a writer (fifo(7)). With O_NONBLOCK it does not.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    // Of the open file, so that nothing else can be put in its place after the check.
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_PROFILE {
        return Ok(None);
    }
    let mut text = String::new();
    // It may grow meanwhile, so the length is limited again.
    file.take(MAX_PROFILE).read_to_string(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_profiles_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        for text in ["", "{", "{}", r#"{"defaultAction":"SCMP_ACT_DANCE"}"#] {
            std::fs::write(&path, text).unwrap();
            assert!(
                local_profile(&path, false).unwrap_err().message.contains("profile.json"),
                "{text:?}"
            );
        }
        std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(
            matches!(local_profile(&path, false).unwrap(), Filter::Program(b) if b.len() % 8 == 0)
        );
        let profile = local_profile(&path, true).unwrap();
        assert!(matches!(profile, Filter::Profile(text) if text.starts_with(b"{")));
        assert!(local_profile(directory.path(), false).is_err());
        assert!(local_profile(Path::new("/no/such/file"), false).is_err());
    }
}
