//! Profiles as Docker writes them: those of the OCI runtime specification, with rules that depend on
//! the machine and on what the container may do.

use berth_base::error::{Error, Result};
use berth_shim::spec::Capabilities;
use serde::{Deserialize, Deserializer};

use super::profile::{Action, Profile, ProfileCondition, ProfileRule};
use crate::container::spec::capability_bit;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DockerProfile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    arch_map: Vec<Architecture>,
    #[serde(default, deserialize_with = "or_null")]
    syscalls: Vec<DockerRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default, deserialize_with = "or_null")]
    sub_architectures: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerRule {
    /// Older profiles have one name in each rule.
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "or_null")]
    names: Vec<String>,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    args: Vec<ProfileCondition>,
    #[serde(default, deserialize_with = "or_null")]
    includes: Circumstances,
    #[serde(default, deserialize_with = "or_null")]
    excludes: Circumstances,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Circumstances {
    #[serde(default, deserialize_with = "or_null")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: String,
}

/// Go writes an empty list as null.
fn or_null<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl DockerProfile {
    /// The profile for a process with these capabilities on this machine.
    ///
    /// # Errors
    /// `InvalidArgument` for contradictions, and for what does not exist.
    pub(super) fn resolve(self, capabilities: Capabilities) -> Result<Profile> {
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            return Err(Error::invalid(
                "both 'architectures' and 'archMap' are specified in the seccomp profile, use \
                 either 'architectures' or 'archMap'",
            ));
        }
        let mut architectures = self.architectures;
        for Architecture { architecture, sub_architectures } in self.arch_map {
            architectures.push(architecture);
            architectures.extend(sub_architectures);
        }
        let mut syscalls = Vec::new();
        for rule in self.syscalls {
            let mut names = rule.names;
            match (rule.name.is_empty(), names.is_empty()) {
                (false, true) => names.push(rule.name),
                (false, false) => {
                    return Err(Error::invalid(
                        "both 'name' and 'names' are specified in the seccomp profile, use either \
                         'name' or 'names'",
                    ));
                }
                (true, _) => {}
            }
            if rule.includes.all_hold(capabilities)? && !rule.excludes.any_holds(capabilities)? {
                let (action, errno_ret, args) = (rule.action, rule.errno_ret, rule.args);
                syscalls.push(ProfileRule { names, action, errno_ret, args });
            }
        }
        Ok(Profile {
            default_action: self.default_action,
            default_errno_ret: self.default_errno_ret,
            architectures,
            syscalls,
        })
    }
}

impl Circumstances {
    fn all_hold(&self, capabilities: Capabilities) -> Result<bool> {
        Ok((self.arches.is_empty() || self.has_arch())
            && (self.min_kernel.is_empty() || is_kernel(&self.min_kernel)?)
            && self.capabilities()? & !capabilities.granted == 0)
    }

    fn any_holds(&self, capabilities: Capabilities) -> Result<bool> {
        Ok(self.has_arch()
            || (!self.min_kernel.is_empty() && is_kernel(&self.min_kernel)?)
            || self.capabilities()? & capabilities.granted != 0)
    }

    fn capabilities(&self) -> Result<u64> {
        self.caps.iter().try_fold(0, |all, name| Ok(all | capability_bit(name)?))
    }

    fn has_arch(&self) -> bool {
        // As Go names them.
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.arches.iter().any(|arch| arch == own)
    }
}

/// Whether the kernel is at least this one, `4.8`.
fn is_kernel(wanted: &str) -> Result<bool> {
    let uname = rustix::system::uname();
    let own = numbers(&uname.release().to_string_lossy());
    let wanted = numbers(wanted)
        .ok_or_else(|| Error::invalid(format!("seccomp profile: minKernel {wanted:?}")))?;
    Ok(own.is_some_and(|own| own >= wanted))
}

/// `(4, 8)` of `4.8.0-rc1`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &str, capabilities: u64) -> Vec<String> {
        let profile: DockerProfile = serde_json::from_str(profile).unwrap();
        let resolved = profile.resolve(Capabilities { granted: capabilities, ambient: 0 }).unwrap();
        resolved.syscalls.into_iter().flat_map(|rule| rule.names).collect()
    }

    #[test]
    fn rules_depend_on_capabilities_and_on_the_machine() {
        let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"includes":{},"excludes":{}},
            {"name":"write","action":"SCMP_ACT_ALLOW"},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
            {"names":["later"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"999.0"}},
            {"names":["s390"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}}]}"#;
        let admin = capability_bit("SYS_ADMIN").unwrap();
        assert_eq!(allowed(profile, 0), ["read", "write", "clone", "ptrace"]);
        assert_eq!(allowed(profile, admin), ["read", "write", "mount", "ptrace"]);
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(numbers("6.18.0-rc1+"), Some((6, 18)));
        assert!(numbers("4.8") < numbers("4.10") && numbers("x").is_none());
    }
}
