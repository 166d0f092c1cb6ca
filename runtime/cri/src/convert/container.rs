//! Requests about containers in berth's types. What a request may not say is refused here, with
//! `InvalidArgument` and the name of the field.

use std::{path::PathBuf, time::Duration};

use berth_base::error::{Error, Result};
use berth_node::container::{self, MountSource};
use berth_proto::v1;
use berth_shim::spec::Propagation;
use berth_streaming::StreamOptions;

use super::{
    resources::resources,
    security::{mapping, security},
    signal::linux_signal,
};

/// The request of CreateContainer.
pub(crate) fn container_config(config: Option<v1::ContainerConfig>) -> Result<container::Config> {
    let config = config.ok_or_else(|| Error::invalid("config is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is missing"));
    }
    let image = config.image.ok_or_else(|| Error::invalid("config.image is missing"))?;
    // 0 is RUNTIME_DEFAULT, so that only an unknown number is an error.
    let stop_signal = v1::Signal::try_from(config.stop_signal)
        .map_err(|_| Error::invalid("stop_signal is not a signal"))?;
    let linux = config.linux.unwrap_or_default();
    Ok(container::Config {
        name: metadata.name,
        attempt: metadata.attempt,
        image: image.image,
        user_specified_image: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        env: config.envs.into_iter().map(variable).collect::<Result<_>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_>>()?,
        devices: config.devices.into_iter().map(device).collect(),
        cdi_devices: config.cdi_devices.into_iter().map(|device| device.name).collect(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: log_path(&config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: linux_signal(stop_signal),
        resources: linux.resources.map(resources).unwrap_or_default(),
        security: security(linux.security_context)?,
        // What else there is has no field in CRI.
        ..container::Config::default()
    })
}

/// The name and the value of an environment variable.
///
/// # Errors
/// `InvalidArgument` for what execve(2) cannot pass on, and what could not be kept as JSON.
fn variable(pair: v1::KeyValue) -> Result<(String, String)> {
    let v1::KeyValue { key, value } = pair;
    let value = String::from_utf8(value)
        .map_err(|_| Error::invalid(format!("envs: the value of {key:?} is not UTF-8")))?;
    if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
        return Err(Error::invalid(format!(
            "envs: the variable {key:?} has no name, or an = in its name, or a NUL byte"
        )));
    }
    Ok((key, value))
}

fn device(device: v1::Device) -> container::Device {
    container::Device {
        host_path: device.host_path.into(),
        container_path: device.container_path.into(),
        permissions: device.permissions,
    }
}

/// The path of the log, relative to the pod's log directory. It must not lead out of that.
fn log_path(text: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text);
    let inside = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if inside {
        Ok(path)
    } else {
        Err(Error::invalid(format!("log_path {text:?} leads out of the pod's log directory")))
    }
}

fn mount(mount: v1::Mount) -> Result<container::Mount> {
    if mount.container_path.is_empty() {
        return Err(Error::invalid("mounts: container_path is missing"));
    }
    let mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    let mapping = mapped.then(|| mapping(&mount.uid_mappings, &mount.gid_mappings)).transpose()?;
    if let Some(option) = mount
        .mount_options
        .iter()
        .find(|option| !container::MOUNT_OPTIONS.contains(&option.as_str()))
    {
        let known = container::MOUNT_OPTIONS.join(", ");
        return Err(Error::invalid(format!(
            "mounts: unknown option {option:?} for {}; the known ones are {known}",
            mount.container_path
        )));
    }
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::Slave,
        v1::MountPropagation::PropagationBidirectional => Propagation::Shared,
    };
    Ok(container::Mount {
        source: mount_source(&mount)?,
        container_path: mount.container_path.into(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        mapping,
        non_recursive: false,
        options: mount.mount_options,
    })
}

fn mount_source(mount: &v1::Mount) -> Result<MountSource> {
    let image = mount.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let wrong =
        |what: &str| Err(Error::invalid(format!("mounts: {} {what}", mount.container_path)));
    match (image, mount.host_path.as_str()) {
        ("", "") => wrong("has neither a host_path nor an image"),
        // Whatever its image_sub_path is: in a pod with an image volume, the kubelet sets it on
        // every mount that has a subPath.
        ("", path) => Ok(MountSource::Host(path.into())),
        // A write would change the layers of all containers that use the image.
        (_, "") if !mount.readonly => wrong("shows an image and is not read-only: set readonly"),
        (_, "") if mount.image_sub_path.starts_with('/') => {
            wrong("has an absolute image_sub_path, which must be relative to the image's root")
        }
        (image, "") => Ok(MountSource::Image {
            image: image.to_owned(),
            sub_path: mount.image_sub_path.clone().into(),
            // CreateContainer fills it in, when the image is found.
            image_ref: String::new(),
        }),
        _ => wrong("has both a host_path and an image"),
    }
}

/// Which of stdin, stdout and stderr a client is connected to.
///
/// # Errors
/// `InvalidArgument` for none of them, or for stderr with a terminal, which has a single output.
pub(crate) fn streams(
    (stdin, stdout, stderr): (bool, bool, bool),
    tty: bool,
) -> Result<StreamOptions> {
    if tty && stderr {
        return Err(Error::invalid("tty and stderr exclude each other: a terminal has one output"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Error::invalid("at least one of stdin, stdout and stderr must be true"));
    }
    Ok(StreamOptions { stdin, stdout, stderr, tty })
}

/// The timeout of an ExecSync. 0 means none; the kubelet never sends a negative one.
pub(crate) fn timeout(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_paths_stay_below_the_log_directory() {
        assert!(log_path("a/0.log").is_ok() && log_path("").is_ok());
        assert!(
            log_path("../0.log").is_err()
                && log_path("/etc/passwd").is_err()
                && log_path("a/../../b").is_err()
        );
    }
}
