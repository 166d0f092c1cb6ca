//! Security contexts of CRI's requests, those of pods and of containers, in berth's types.

use std::path::PathBuf;

use berth_base::error::{Error, Result};
use berth_node::{
    container::{MASKED_PATHS, READONLY_PATHS, Seccomp, Security},
    sandbox::{NamespaceMode, NamespaceModes, UserMapping},
    security::{apparmor::Profile, selinux},
};
use berth_proto::v1;
use berth_shim::spec::IdMapping;

/// The security context of a container. Without one, what Kubernetes hides by default is hidden.
pub(super) fn security(context: Option<v1::LinuxContainerSecurityContext>) -> Result<Security> {
    let paths = |paths: Vec<String>| paths.into_iter().map(PathBuf::from).collect::<Vec<_>>();
    let Some(context) = context else {
        let masked_paths = MASKED_PATHS.map(PathBuf::from).to_vec();
        return Ok(Security {
            masked_paths,
            readonly_paths: READONLY_PATHS.map(PathBuf::from).to_vec(),
            ..Security::default()
        });
    };
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let namespaces = namespaces(context.namespace_options.as_ref())?;
    let strict_groups =
        context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Strict;
    #[allow(deprecated, reason = "older kubelets send them")]
    let (seccomp_path, apparmor_name) = (&context.seccomp_profile_path, &context.apparmor_profile);
    let seccomp = seccomp(context.seccomp.as_ref(), seccomp_path)?;
    let apparmor = apparmor(context.apparmor.as_ref(), apparmor_name)?;
    Ok(Security {
        privileged: context.privileged,
        namespaces,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        ambient_capabilities: capabilities.add_ambient_capabilities,
        run_as_user: context.run_as_user.map(|user| user.value),
        run_as_username: context.run_as_username,
        run_as_group: context.run_as_group.map(|group| group.value),
        supplemental_groups: context.supplemental_groups,
        strict_groups,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: paths(context.masked_paths),
        readonly_paths: paths(context.readonly_paths),
        seccomp,
        apparmor,
        selinux: selinux(context.selinux_options),
        // What else there is has no field in CRI.
        ..Security::default()
    })
}

pub(super) fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<NamespaceModes> {
    let Some(options) = options else { return Ok(NamespaceModes::default()) };
    // Only a PID namespace can be of one container, or of another one.
    for (field, given) in [("network", options.network()), ("ipc", options.ipc())] {
        if matches!(given, v1::NamespaceMode::Container | v1::NamespaceMode::Target) {
            return Err(Error::invalid(format!(
                "namespace_options.{field}: the mode must be POD or NODE"
            )));
        }
    }
    Ok(NamespaceModes {
        network: mode(options.network()),
        pid: mode(options.pid()),
        ipc: mode(options.ipc()),
        target: options.target_id.clone(),
        user: options.userns_options.as_ref().map(user_namespace).transpose()?.flatten(),
        uts: None,
    })
}

fn mode(mode: v1::NamespaceMode) -> NamespaceMode {
    match mode {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => NamespaceMode::Target,
    }
}

/// The mapping of a pod's own user namespace (KEP 127). `None` with the host's.
fn user_namespace(options: &v1::UserNamespace) -> Result<Option<UserMapping>> {
    match options.mode() {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => {
            Err(Error::invalid("userns_options: mode NODE excludes uids and gids"))
        }
        v1::NamespaceMode::Pod => mapping(&options.uids, &options.gids).map(Some),
        mode => Err(Error::invalid(format!(
            "userns_options: the mode must be POD or NODE, and not {}",
            mode.as_str_name()
        ))),
    }
}

/// The mapping of a user namespace. The kubelet sends one range of users and one of groups, both
/// from 0 on, and nothing else is supported.
pub(super) fn mapping(uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> Result<UserMapping> {
    Ok(UserMapping { uids: id_range("uids", uids)?, gids: id_range("gids", gids)? })
}

fn id_range(field: &str, ids: &[v1::IdMapping]) -> Result<IdMapping> {
    match ids {
        [v1::IdMapping { container_id: 0, host_id, length }]
            if *length > 0 && host_id.checked_add(*length).is_some() =>
        {
            Ok(IdMapping { host: *host_id, length: *length })
        }
        _ => Err(Error::invalid(format!(
            "{field}: there must be exactly one mapping, with container_id 0"
        ))),
    }
}

pub(super) fn selinux(options: Option<v1::SeLinuxOption>) -> selinux::Options {
    let v1::SeLinuxOption { user, role, r#type, level } = options.unwrap_or_default();
    selinux::Options { user, role, kind: r#type, level }
}

/// The AppArmor profile. The deprecated name counts only without the message, and without both the
/// container gets the default.
fn apparmor(profile: Option<&v1::SecurityProfile>, name: &str) -> Result<Profile> {
    use v1::security_profile::ProfileType;
    match (profile.map(|profile| (profile.profile_type(), profile.localhost_ref.as_str())), name) {
        (Some((ProfileType::RuntimeDefault, _)), _) | (None, "" | "runtime/default") => {
            Ok(Profile::RuntimeDefault)
        }
        (Some((ProfileType::Unconfined, _)), _) | (None, "unconfined") => Ok(Profile::Unconfined),
        (Some((ProfileType::Localhost, name)), _) => local_apparmor(name),
        (None, name) if name.starts_with("localhost/") => local_apparmor(name),
        (None, name) => {
            Err(Error::invalid(format!("apparmor_profile {name:?} is not localhost/<name>")))
        }
    }
}

/// A profile that is loaded into the kernel under this name, which may begin with `localhost/`.
fn local_apparmor(name: &str) -> Result<Profile> {
    match name.strip_prefix("localhost/").unwrap_or(name) {
        "" => Err(Error::invalid("apparmor: localhost_ref is missing")),
        name => Ok(Profile::Localhost(name.to_owned())),
    }
}

/// The seccomp profile. The deprecated path counts only without the message, and without both the
/// container is unconfined.
fn seccomp(profile: Option<&v1::SecurityProfile>, path: &str) -> Result<Seccomp> {
    use v1::security_profile::ProfileType;
    match (profile.map(v1::SecurityProfile::profile_type), path) {
        (Some(ProfileType::Unconfined), _) | (None, "" | "unconfined") => Ok(Seccomp::Unconfined),
        (Some(ProfileType::RuntimeDefault), _) | (None, "runtime/default" | "docker/default") => {
            Ok(Seccomp::RuntimeDefault)
        }
        (Some(ProfileType::Localhost), _) => {
            local_seccomp(profile.map_or("", |profile| &profile.localhost_ref))
        }
        (None, path) => local_seccomp(path.strip_prefix("localhost/").unwrap_or(path)),
    }
}

/// A profile in a file of this machine. The kubelet sends its absolute path.
fn local_seccomp(path: &str) -> Result<Seccomp> {
    match path.starts_with('/') {
        true => Ok(Seccomp::Localhost(path.into())),
        false => {
            Err(Error::invalid(format!("seccomp.localhost_ref {path:?} is not an absolute path")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_security_context_hides_what_kubernetes_hides_and_an_empty_one_hides_nothing() {
        let none = security(None).unwrap();
        assert!(
            none.masked_paths.contains(&"/sys/devices/virtual/powercap".into()),
            "{:?}",
            none.masked_paths
        );
        assert_eq!(
            (none.masked_paths.len(), none.readonly_paths.len()),
            (MASKED_PATHS.len(), READONLY_PATHS.len())
        );
        let empty = security(Some(v1::LinuxContainerSecurityContext::default())).unwrap();
        assert!(empty.masked_paths.is_empty() && empty.seccomp == Seccomp::Unconfined);
    }
}
