//! SELinux: what processes and files of a pod are labelled as. Policy and types are the machine's own (`lxc_contexts`, as Docker,
//! containerd and CRI-O read it); berth adds a pair of categories for each pod, so that no pod can reach another's files.

use std::{
    collections::HashSet,
    fmt, fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use rustix::{
    fs::{XattrFlags, lsetxattr},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    id,
};

/// There where SELinux is enabled and a policy is loaded.
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// Takes a label that the policy has, and no other.
const CONTEXT: &str = "/sys/fs/selinux/context";
const CONFIG: &str = "/etc/selinux/config";
/// Every policy has s0 and these categories.
const CATEGORIES: u16 = 1024;

/// What was asked for (`SELinuxOption`); what is empty is berth's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// `user:role:type:level`, of the processes of a pod or a container, and of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Labels {
    process: Label,
    files: Label,
}

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

/// A kernel, which has SELinux or not.
#[derive(Debug)]
pub(crate) struct SeLinux {
    /// Of the policy; absent: nothing is labelled.
    defaults: Option<Labels>,
    /// Levels of living pods.
    taken: Arc<Mutex<HashSet<String>>>,
}

/// A pod's level, which no other pod is given while this lives.
#[derive(Debug)]
pub(crate) struct Level {
    level: String,
    taken: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Level {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.level);
    }
}

impl SeLinux {
    pub(crate) fn detect() -> Self {
        let defaults = Path::new(ENFORCE).exists().then(read_defaults).transpose();
        let defaults = defaults.unwrap_or_else(|error| {
            tracing::warn!("SELinux is enabled, and nothing will be labelled: {error:#}");
            None
        });
        Self { defaults, taken: Arc::default() }
    }

    /// Labels of a pod. Without SELinux there are none, whatever was asked for.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no label of this machine's policy.
    pub(crate) fn for_pod(&self, options: &Options) -> Result<Option<(Labels, Level)>> {
        let Some(defaults) = &self.defaults else { return Ok(None) };
        let level = match options.level.as_str() {
            "" => self.unused(),
            given => self.hold(given.to_owned()),
        };
        let mut labels = defaults.clone();
        (labels.process.level, labels.files.level) = (level.level.clone(), level.level.clone());
        let labels = labels.with(options)?;
        check(&labels)?;
        Ok(Some((labels, level)))
    }

    /// Labels of a container of the pod that has `pod`.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no label of this machine's policy.
    pub(crate) fn for_container(&self, pod: &Labels, options: &Options) -> Result<Labels> {
        let labels = pod.with(options)?;
        check(&labels)?;
        Ok(labels)
    }

    /// The level of a pod that was there before this daemon.
    pub(crate) fn keep(&self, labels: &Labels) -> Level {
        self.hold(labels.process.level.clone())
    }

    fn hold(&self, level: String) -> Level {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(level.clone());
        Level { level, taken: self.taken.clone() }
    }

    fn unused(&self) -> Level {
        loop {
            let random = id::random_bytes(4);
            let [one, other] =
                [&random[..2], &random[2..]].map(|two| u16::from_ne_bytes([two[0], two[1]]) % CATEGORIES);
            let level = format!("s0:c{},c{}", one.min(other), one.max(other));
            let free = !self.taken.lock().unwrap_or_else(PoisonError::into_inner).contains(&level);
            if one != other && free {
                return self.hold(level);
            }
        }
    }
}

impl Labels {
    /// These, with what `options` says otherwise: for a container of the pod that has these.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be part of a label.
    fn with(&self, options: &Options) -> Result<Self> {
        let mut labels = self.clone();
        let replace = |part: &mut String, given: &String, more: &str| {
            let fits = given.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c) || more.contains(c));
            if !fits {
                return Err(Error::invalid(format!("selinux_options: {given:?} cannot be part of a label")));
            }
            if !given.is_empty() {
                given.clone_into(part);
            }
            Ok(())
        };
        replace(&mut labels.process.user, &options.user, "")?;
        replace(&mut labels.process.role, &options.role, "")?;
        replace(&mut labels.process.kind, &options.kind, "")?;
        replace(&mut labels.process.level, &options.level, ":,")?;
        replace(&mut labels.files.user, &options.user, "")?;
        replace(&mut labels.files.level, &options.level, ":,")?;
        Ok(labels)
    }

    pub(crate) fn process(&self) -> String {
        self.process.to_string()
    }

    pub(crate) fn files(&self) -> String {
        self.files.to_string()
    }

    /// Labels a file of berth's own that is shown in the pod, where its filesystem has labels.
    pub(crate) fn apply(&self, path: &Path) -> anyhow::Result<()> {
        match lsetxattr(path, "security.selinux", self.files().as_bytes(), XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => result.with_context(|| format!("label {} as {}", path.display(), self.files)),
        }
    }
}

/// Asks the kernel, which knows the policy.
fn check(labels: &Labels) -> Result<()> {
    if !Path::new(CONTEXT).exists() {
        return Ok(());
    }
    for label in [labels.process(), labels.files()] {
        let known = fs::write(CONTEXT, &label);
        known.map_err(|error| Error::invalid(format!("selinux_options: no such label: {label}: {error}")))?;
    }
    Ok(())
}

/// The `process` and `file` lines of the policy's `lxc_contexts`.
fn read_defaults() -> anyhow::Result<Labels> {
    let config = fs::read_to_string(CONFIG).with_context(|| format!("read {CONFIG}"))?;
    let policy = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).context("no SELINUXTYPE")?;
    let path = format!("/etc/selinux/{}/contexts/lxc_contexts", policy.trim());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_defaults(&text).with_context(|| format!("{path}: no labels for process and file"))
}

fn parse_defaults(text: &str) -> Option<Labels> {
    let find = |key: &str| {
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches('"'))
        })?;
        let mut parts = value.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Label { user, role, kind, level: parts.next().unwrap_or_else(|| "s0".to_owned()) })
    };
    Some(Labels { process: find("process")?, files: find("file")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "# of the policy\nprocess = \"system_u:system_r:container_t:s0\"\ncontent = \"x\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n";

    fn selinux() -> SeLinux {
        SeLinux { defaults: parse_defaults(CONTEXTS), taken: Arc::default() }
    }

    #[test]
    fn every_pod_has_categories_of_its_own_and_its_containers_share_them() {
        let selinux = selinux();
        let pods: Vec<_> = (0..200).map(|_| selinux.for_pod(&Options::default()).unwrap().unwrap()).collect();
        let levels: HashSet<&str> = pods.iter().map(|(labels, _)| labels.process.level.as_str()).collect();
        assert_eq!(levels.len(), pods.len());
        let (labels, _) = &pods[0];
        assert!(labels.process().starts_with("system_u:system_r:container_t:s0:c"), "{labels:?}");
        assert_eq!(labels.files(), format!("system_u:object_r:container_file_t:{}", labels.process.level));
        let init = labels.with(&Options { kind: "container_init_t".into(), ..Options::default() }).unwrap();
        assert_eq!(init.process(), labels.process().replace("container_t", "container_init_t"));
        assert_eq!(init.files(), labels.files());
        drop(pods);
        assert!(selinux.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_given_is_taken_and_what_is_no_label_refused() {
        let given = Options { user: "u".into(), role: "r".into(), kind: "t".into(), level: "s0:c4,c5".into() };
        let (labels, _level) = selinux().for_pod(&given).unwrap().unwrap();
        assert_eq!(
            (labels.process(), labels.files()),
            ("u:r:t:s0:c4,c5".into(), "u:object_r:container_file_t:s0:c4,c5".into())
        );
        for wrong in ["a b", "a:b", "a\n", "a/b", "a\"b"] {
            let options = Options { kind: wrong.into(), ..Options::default() };
            assert!(selinux().for_pod(&options).unwrap_err().message.contains("selinux_options"), "{wrong:?}");
        }
        let without = SeLinux { defaults: None, taken: Arc::default() };
        assert!(without.for_pod(&given).unwrap().is_none());
        assert!(parse_defaults("process = \"a:b:c\"").is_none());
    }
}
