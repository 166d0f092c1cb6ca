//! Which namespaces a container joins, and which ones are made for it.

use berth_base::error::{Error, Result};
use berth_shim::spec::{Namespace, Namespaces};

use super::inputs::Inputs;
use crate::sandbox::{NamespaceMode, Pins};

/// The namespaces of a container. Those of network, IPC and hostname are always the sandbox's; the
/// container chooses its PID namespace.
///
/// # Errors
/// `InvalidArgument` for a PID namespace that the sandbox does not have.
pub(super) fn namespaces(inputs: &Inputs<'_>) -> Result<Namespaces> {
    let Inputs { config, sandbox, .. } = inputs;
    let pins = Pins::of(inputs.layout, &sandbox.id);
    let shared = &sandbox.config;
    let mut pin_proc = None;
    let pid = match config.security.namespaces.pid {
        NamespaceMode::Node if shared.namespaces.user.is_some() => {
            // Root of the pod's user namespace does not own the host's PID namespace, and could not
            // mount its /proc (user_namespaces(7)).
            return Err(Error::invalid(
                "userns_options: a pod with a user namespace cannot have the host's PID namespace",
            ));
        }
        NamespaceMode::Node => Namespace::Host,
        NamespaceMode::Pod if shared.namespaces.pid == NamespaceMode::Pod => {
            pin_proc = Some(pins.proc);
            Namespace::Join(pins.pid)
        }
        NamespaceMode::Pod => {
            return Err(Error::invalid(
                "namespace_options.pid: the sandbox has no PID namespace that containers share \
                 (it was run with another mode than POD)",
            ));
        }
        // The process that the target container has is known only when this one starts: then
        // `lifecycle` replaces this.
        NamespaceMode::Container | NamespaceMode::Target => Namespace::New,
    };
    Ok(Namespaces {
        net: sandbox.network_namespace().map_or(Namespace::Host, Namespace::Join),
        ipc: sandbox
            .ipc_pins(inputs.layout)
            .map_or(Namespace::Host, |pins| Namespace::Join(pins.ipc)),
        uts: if shared.shares_uts() { Namespace::Host } else { Namespace::Join(pins.uts) },
        pid,
        user: sandbox.user_namespace(inputs.layout),
        pin_pid: None,
        pin_proc,
        target: None,
        host_cgroup: config.security.host_cgroup,
    })
}
