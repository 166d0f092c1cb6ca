//! Turns CRI's request and the image's config into a `Spec`, which says exactly what will run. It
//! is a pure function of `Inputs`.

mod capabilities;
mod devices;
mod inputs;
mod mounts;
mod namespaces;
mod process;
mod user;

use std::path::PathBuf;

use berth_base::error::{Error, Result};
use berth_shim::spec::{Container, Program, Rootfs, Spec, Stdio};

pub use capabilities::{ALL as ALL_CAPABILITIES, bit as capability_bit};
pub(super) use devices::resolve as resolve_devices;
pub(super) use inputs::Inputs;
pub use {
    mounts::{OPTIONS as MOUNT_OPTIONS, declared_volumes},
    user::parse as parse_user,
};

use crate::{sandbox::Origin, security::selinux::Labels};

/// Builds what the shim is told to run.
///
/// # Errors
/// `InvalidArgument` for a request that contradicts itself or its sandbox, or names no command.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Spec> {
    let Inputs { config, sandbox, .. } = inputs;
    let privileged = config.security.privileged;
    // A container joins the namespaces of its sandbox and cannot have a mapping of its own.
    if config.security.namespaces.user != sandbox.config.namespaces.user {
        return Err(Error::invalid("userns_options differ from those of the sandbox"));
    }
    let labels = inputs.labels.as_ref();
    if config.init && inputs.oci_runtime.is_some() {
        return Err(Error::invalid("the sandbox's runtime handler has no init"));
    }
    // CRI says that the sandbox must be privileged then (`LinuxSandboxSecurityContext.privileged`),
    // so that a runtime can protect sandboxes in which no container is to be privileged.
    if privileged && !sandbox.config.privileged {
        return Err(Error::invalid("a privileged container needs a privileged sandbox"));
    }
    let hidden = |paths: &[PathBuf]| if privileged { Vec::new() } else { paths.to_vec() };
    let container = Container {
        rootfs: Rootfs {
            layers_dir: inputs.layout.layers(),
            layers: layers(inputs),
            mount_points: None,
            readonly: config.security.readonly_rootfs,
            writable: config.writable_layer.clone(),
        },
        mounts: mounts::build(inputs)?,
        devices: inputs.devices.clone(),
        // A privileged process gets no label here. It has the one that the policy gives to programs
        // that the daemon starts, which is not confined.
        process: process::process(inputs, labels.filter(|_| !privileged).map(Labels::process))?,
        label: labels.map(Labels::files),
        masked_paths: hidden(&config.security.masked_paths),
        readonly_paths: hidden(&config.security.readonly_paths),
        hooks: inputs.named.hooks()?,
        oci_runtime: inputs.oci_runtime.clone(),
        init: config.init,
    };
    Ok(Spec {
        id: inputs.id.to_owned(),
        sandbox: inputs.sandbox.id.to_string(),
        socket_dir: inputs.socket_dir.clone(),
        records: inputs.records.to_vec(),
        cgroups: inputs.cgroups.clone(),
        namespaces: namespaces::namespaces(inputs)?,
        program: Program::Container(Box::new(container)),
        stdio: Stdio {
            log: inputs.log.clone(),
            log_directory: Some(sandbox.config.log_directory.clone()),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            awaits_attach: config.awaits_attach,
            // As Docker's clients expect it, who pipe what a container writes to other programs.
            lossless: sandbox.config.origin == Origin::Engine,
            rotation: config.log_rotation,
            window: config.window,
        },
        label: None,
    })
}

/// Those of the image, and what is to be below them.
fn layers(inputs: &Inputs<'_>) -> Vec<String> {
    let base = inputs.config.base_layer.iter().map(|path| path.display().to_string());
    inputs.layers.iter().cloned().chain(base).collect()
}
