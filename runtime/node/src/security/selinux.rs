//! SELinux: the labels of a pod's processes and files. The policy and its types are the machine's
//! own (`lxc_contexts`, which Docker, containerd and CRI-O read too). berth adds a pair of
//! categories for each pod, so that no pod can reach the files of another.

use std::{
    collections::HashSet,
    fmt, fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use berth_base::{
    error::{Error, Result},
    id,
};
use rustix::{
    fs::{XattrFlags, lsetxattr},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// This file is there if SELinux is enabled and a policy is loaded.
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// A write of a label to this file succeeds if the policy has it.
const CONTEXT: &str = "/sys/fs/selinux/context";
const CONFIG: &str = "/etc/selinux/config";
/// How many categories a policy has for sensitivity s0: c0 to c1023.
const CATEGORIES: u16 = 1024;

/// What a request asks for (`SELinuxOption`). What is empty is chosen by berth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// The labels of a pod's or container's processes, and of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    process: Label,
    files: Label,
}

/// `user:role:type:level`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

/// What was found of SELinux when the daemon started.
#[derive(Debug)]
pub struct SeLinux {
    /// The labels of the policy. Absent: nothing is labelled.
    defaults: Option<Labels>,
    /// The levels of the pods that are there.
    taken: Arc<Mutex<HashSet<String>>>,
}

/// A pod's level, which no other pod is given while this lives.
#[derive(Debug)]
pub struct Level {
    level: String,
    taken: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Level {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.level);
    }
}

impl SeLinux {
    pub fn detect() -> Self {
        let defaults = Path::new(ENFORCE).exists().then(read_defaults).transpose();
        // The node serves all the same: containers are confined by everything else.
        let defaults = defaults.unwrap_or_else(|error| {
            tracing::warn!("SELinux is enabled, but containers are not labelled: {error:#}");
            None
        });
        Self { defaults, taken: Arc::default() }
    }

    /// The labels of a new pod. Without SELinux there are none, whatever the request asks for.
    ///
    /// # Errors
    /// `InvalidArgument` for a label that this machine's policy does not have.
    pub fn for_pod(&self, options: &Options) -> Result<Option<(Labels, Level)>> {
        let Some(defaults) = &self.defaults else { return Ok(None) };
        let level = match options.level.as_str() {
            "" => self.unused(),
            // Pods that ask for the same level want to share files.
            given => self.hold(given.to_owned()),
        };
        let mut labels = defaults.clone();
        labels.process.level.clone_from(&level.level);
        labels.files.level.clone_from(&level.level);
        let labels = labels.with(options)?;
        // Otherwise the shim would be the first to notice, in the middle of a start.
        check(&labels)?;
        Ok(Some((labels, level)))
    }

    /// The labels of a container in a pod with the labels `pod`.
    ///
    /// # Errors
    /// `InvalidArgument` for a label that this machine's policy does not have.
    pub fn for_container(&self, pod: &Labels, options: &Options) -> Result<Labels> {
        let labels = pod.with(options)?;
        check(&labels)?;
        Ok(labels)
    }

    /// Holds the level of a pod that was there before this daemon.
    pub fn keep(&self, labels: &Labels) -> Level {
        self.hold(labels.process.level.clone())
    }

    fn hold(&self, level: String) -> Level {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(level.clone());
        Level { level, taken: self.taken.clone() }
    }

    /// A level with a random pair of categories that no pod has. There are half a million pairs, so
    /// the first one is nearly always free.
    fn unused(&self) -> Level {
        loop {
            let one = random_category();
            let other = random_category();
            let level = format!("s0:c{},c{}", one.min(other), one.max(other));
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            // One category alone would be within the reach of all pods that have it in their pair.
            if one != other && taken.insert(level.clone()) {
                return Level { level, taken: self.taken.clone() };
            }
        }
    }
}

fn random_category() -> u16 {
    let random = id::random_bytes(2);
    u16::from_ne_bytes([random[0], random[1]]) % CATEGORIES
}

/// Replaces a part of a label, unless nothing is given. `more`: what the part may have in it
/// besides letters, digits and `_-.`.
fn replace(part: &mut String, given: &String, more: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c) || more.contains(c);
    // A colon in a user, for example, would shift the other parts.
    if !given.chars().all(is_allowed) {
        let text = format!("selinux_options: {given:?} cannot be part of a label");
        return Err(Error::invalid(text));
    }
    if !given.is_empty() {
        given.clone_into(part);
    }
    Ok(())
}

impl Labels {
    /// These labels, with what `options` gives in their place.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be part of a label.
    fn with(&self, options: &Options) -> Result<Self> {
        let mut labels = self.clone();
        replace(&mut labels.process.user, &options.user, "")?;
        replace(&mut labels.process.role, &options.role, "")?;
        replace(&mut labels.process.kind, &options.kind, "")?;
        replace(&mut labels.process.level, &options.level, ":,")?;
        // Role and type are of processes; files have object_r and a type of their own.
        replace(&mut labels.files.user, &options.user, "")?;
        replace(&mut labels.files.level, &options.level, ":,")?;
        Ok(labels)
    }

    pub fn process(&self) -> String {
        self.process.to_string()
    }

    pub fn files(&self) -> String {
        self.files.to_string()
    }

    /// Labels a file of berth's own that the pod sees, such as its /etc/hosts. Success on a
    /// filesystem without labels.
    pub fn apply(&self, path: &Path) -> anyhow::Result<()> {
        match lsetxattr(path, "security.selinux", self.files().as_bytes(), XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => result.with_context(|| format!("label {} as {}", path.display(), self.files)),
        }
    }
}

/// Asks the kernel whether its policy has these labels.
fn check(labels: &Labels) -> Result<()> {
    // In unit tests on a machine without SELinux, there is no policy to ask.
    if !Path::new(CONTEXT).exists() {
        return Ok(());
    }
    for label in [labels.process(), labels.files()] {
        fs::write(CONTEXT, &label).map_err(|error| {
            Error::invalid(format!(
                "selinux_options: no such label in the policy: {label}: {error}"
            ))
        })?;
    }
    Ok(())
}

/// The `process` and `file` lines of the policy's `lxc_contexts`.
fn read_defaults() -> anyhow::Result<Labels> {
    let config = fs::read_to_string(CONFIG).with_context(|| format!("read {CONFIG}"))?;
    let policy = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("SELINUXTYPE="))
        .with_context(|| format!("no SELINUXTYPE in {CONFIG}"))?;
    let path = format!("/etc/selinux/{}/contexts/lxc_contexts", policy.trim());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_defaults(&text).with_context(|| format!("{path}: no labels for process and file"))
}

fn parse_defaults(text: &str) -> Option<Labels> {
    Some(Labels { process: parse_label(text, "process")?, files: parse_label(text, "file")? })
}

/// The label in the line `key = "user:role:type:level"`.
fn parse_label(text: &str, key: &str) -> Option<Label> {
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })?;
    let mut parts = value.splitn(4, ':').map(str::to_owned);
    Some(Label {
        user: parts.next()?,
        role: parts.next()?,
        kind: parts.next()?,
        // Policies without levels leave it out.
        level: parts.next().unwrap_or_else(|| "s0".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "# of the policy\n\
        process = \"system_u:system_r:container_t:s0\"\n\
        content = \"x\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n";

    fn selinux() -> SeLinux {
        SeLinux { defaults: parse_defaults(CONTEXTS), taken: Arc::default() }
    }

    #[test]
    fn every_pod_has_categories_of_its_own_and_its_containers_share_them() {
        let selinux = selinux();
        let pods: Vec<_> =
            (0..200).map(|_| selinux.for_pod(&Options::default()).unwrap().unwrap()).collect();
        let levels: HashSet<&str> =
            pods.iter().map(|(labels, _)| labels.process.level.as_str()).collect();
        assert_eq!(levels.len(), pods.len());
        let (labels, _) = &pods[0];
        assert!(labels.process().starts_with("system_u:system_r:container_t:s0:c"), "{labels:?}");
        assert_eq!(
            labels.files(),
            format!("system_u:object_r:container_file_t:{}", labels.process.level)
        );
        let init = labels
            .with(&Options { kind: "container_init_t".into(), ..Options::default() })
            .unwrap();
        assert_eq!(init.process(), labels.process().replace("container_t", "container_init_t"));
        assert_eq!(init.files(), labels.files());
        drop(pods);
        assert!(selinux.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_given_is_taken_and_what_is_no_label_refused() {
        let given = Options {
            user: "u".into(),
            role: "r".into(),
            kind: "t".into(),
            level: "s0:c4,c5".into(),
        };
        let (labels, _level) = selinux().for_pod(&given).unwrap().unwrap();
        assert_eq!(
            (labels.process(), labels.files()),
            ("u:r:t:s0:c4,c5".into(), "u:object_r:container_file_t:s0:c4,c5".into())
        );
        for wrong in ["a b", "a:b", "a\n", "a/b", "a\"b"] {
            let options = Options { kind: wrong.into(), ..Options::default() };
            assert!(
                selinux().for_pod(&options).unwrap_err().message.contains("selinux_options"),
                "{wrong:?}"
            );
        }
        let without = SeLinux { defaults: None, taken: Arc::default() };
        assert!(without.for_pod(&given).unwrap().is_none());
        assert!(parse_defaults("process = \"a:b:c\"").is_none());
    }
}
