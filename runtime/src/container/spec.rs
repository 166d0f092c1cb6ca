//! CRI and image to `Spec`: what exactly will run. Pure: everything that it depends on comes in.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use berth_shim::spec::{
    Cgroups, Container, Device, Namespace, Namespaces, OciRuntime, Process, Program, Rlimit, RlimitKind, Rootfs, Spec,
    Stdio,
};
use oci_spec::image::ImageConfiguration;

use super::{Config, Seccomp, mounts, security};
use crate::{
    cdi,
    error::{Error, Result},
    layout::Layout,
    sandbox::{self, NamespaceMode, Pins},
    selinux::Labels,
};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What systemd gives services; far above it, programs that close every descriptor take seconds to start.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Everything that the specification of a container depends on.
pub(super) struct Inputs<'a> {
    pub id: &'a str,
    pub config: &'a Config,
    pub sandbox: &'a sandbox::Meta,
    pub image: &'a ImageConfiguration,
    /// Names below the layers' directory, topmost first.
    pub layers: Vec<String>,
    pub layout: &'a Layout,
    pub socket_dir: PathBuf,
    pub log: Option<PathBuf>,
    pub cgroups: Cgroups,
    /// Layers of the images that it mounts, by how the request names them.
    pub mounted: BTreeMap<String, Vec<String>>,
    pub devices: Vec<Device>,
    /// What the devices that it names bring.
    pub named: &'a cdi::Edits,
    pub oci_runtime: Option<OciRuntime>,
    /// Profile to run under.
    pub apparmor: Option<String>,
    /// Of SELinux, where it is enabled.
    pub labels: Option<Labels>,
    /// Hierarchies to show at /sys/fs/cgroup; empty on v2.
    pub v1_names: Vec<String>,
}

/// # Errors
/// `InvalidArgument` for what contradicts itself, or says nothing to run.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Spec> {
    let Inputs { config, sandbox, .. } = inputs;
    let privileged = config.security.privileged;
    if config.security.namespaces.user != sandbox.config.namespaces.user {
        return Err(Error::invalid("userns_options differ from those of the sandbox"));
    }
    let labels = inputs.labels.as_ref();
    if privileged && !sandbox.config.privileged {
        return Err(Error::invalid("a privileged container needs a privileged sandbox"));
    }
    let hidden = |paths: &[PathBuf]| if privileged { Vec::new() } else { paths.to_vec() };
    let container = Container {
        rootfs: Rootfs {
            layers_dir: inputs.layout.layers(),
            layers: inputs.layers.clone(),
            readonly: config.security.readonly_rootfs,
        },
        mounts: mounts::build(inputs)?,
        devices: inputs.devices.clone(),
        // A privileged one has the label that the policy gives to what the daemon starts.
        process: process(inputs, labels.filter(|_| !privileged).map(Labels::process))?,
        label: labels.map(Labels::files),
        masked_paths: hidden(&config.security.masked_paths),
        readonly_paths: hidden(&config.security.readonly_paths),
        hooks: inputs.named.hooks()?,
        oci_runtime: inputs.oci_runtime.clone(),
    };
    Ok(Spec {
        id: inputs.id.to_owned(),
        socket_dir: inputs.socket_dir.clone(),
        cgroups: inputs.cgroups.clone(),
        namespaces: namespaces(inputs)?,
        program: Program::Container(Box::new(container)),
        stdio: Stdio { log: inputs.log.clone(), stdin: config.stdin, stdin_once: config.stdin_once },
    })
}

/// Network, IPC and hostname are the sandbox's; the PID namespace is the container's choice.
fn namespaces(inputs: &Inputs<'_>) -> Result<Namespaces> {
    let Inputs { config, sandbox, .. } = inputs;
    let pins = Pins::of(inputs.layout, &sandbox.id);
    let shared = &sandbox.config;
    let pid = match config.security.namespaces.pid {
        NamespaceMode::Node => Namespace::Host,
        NamespaceMode::Pod if shared.namespaces.pid == NamespaceMode::Pod => Namespace::Join(pins.pid),
        NamespaceMode::Pod => return Err(Error::invalid("the sandbox was not made with a PID namespace for the pod")),
        // Of the target: known only when the container starts.
        NamespaceMode::Container | NamespaceMode::Target => Namespace::New,
    };
    Ok(Namespaces {
        net: sandbox.netns().map_or(Namespace::Host, Namespace::Join),
        ipc: if shared.namespaces.ipc == NamespaceMode::Node { Namespace::Host } else { Namespace::Join(pins.ipc) },
        uts: if shared.shares_uts() { Namespace::Host } else { Namespace::Join(pins.uts) },
        pid,
        user: sandbox.user_namespace(inputs.layout),
        pin_pid: None,
    })
}

fn process(inputs: &Inputs<'_>, selinux: Option<String>) -> Result<Process> {
    let Inputs { config, image, .. } = inputs;
    let of_image = image.config().clone().unwrap_or_default();
    let security = &config.security;
    let cwd = match (config.working_dir.as_str(), of_image.working_dir().as_deref()) {
        ("", None | Some("")) => "/",
        ("", Some(directory)) => directory,
        (directory, _) => directory,
    };
    let mut user = security::user(security, of_image.user().as_deref().unwrap_or_default())?;
    user.supplementary.extend(&inputs.named.additional_gids);
    Ok(Process {
        args: args(
            config,
            of_image.entrypoint().as_deref().unwrap_or_default(),
            of_image.cmd().as_deref().unwrap_or_default(),
        )?,
        env: env(inputs, of_image.env().as_deref().unwrap_or_default()),
        cwd: Path::new("/").join(cwd),
        user,
        capabilities: security::capabilities(security)?,
        no_new_privileges: security.no_new_privs,
        rlimits: vec![Rlimit { kind: RlimitKind::Nofile, soft: OPEN_FILES.0, hard: OPEN_FILES.1 }],
        oom_score_adj: Some(config.resources.oom_score_adj.clamp(-1000, 1000) as i32),
        seccomp: security.seccomp != Seccomp::Unconfined && !security.privileged,
        apparmor: inputs.apparmor.clone(),
        selinux,
        tty: config.tty,
    })
}

/// A command replaces the image's entrypoint and arguments, arguments alone replace its arguments (`ContainerConfig.command`).
fn args(config: &Config, entrypoint: &[String], cmd: &[String]) -> Result<Vec<String>> {
    let (program, arguments) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (config.command.as_slice(), config.args.as_slice()),
        (true, false) => (entrypoint, config.args.as_slice()),
        (true, true) => (entrypoint, cmd),
    };
    let args = [program, arguments].concat();
    match args.first() {
        None => Err(Error::invalid("no command specified: neither the container nor its image says what to run")),
        Some(first) if first.is_empty() => Err(Error::invalid("the command is empty")),
        Some(_) if args.iter().any(|arg| arg.contains('\0')) => Err(Error::invalid("a NUL byte in the command")),
        Some(_) => Ok(args),
    }
}

/// Later values of a name replace earlier ones, in the place of the first.
fn env(inputs: &Inputs<'_>, of_image: &[String]) -> Vec<String> {
    let hostname = &inputs.sandbox.config.hostname;
    let mut all = vec![PATH.to_owned()];
    all.extend((!hostname.is_empty()).then(|| format!("HOSTNAME={hostname}")));
    all.extend(inputs.config.tty.then(|| "TERM=xterm".to_owned()));
    all.extend(of_image.iter().cloned());
    all.extend(inputs.config.env.iter().map(|(name, value)| format!("{name}={value}")));
    all.extend(inputs.named.env.iter().cloned());
    let mut env: Vec<String> = Vec::new();
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in all {
        match env.iter_mut().find(|earlier| name(earlier) == name(&variable)) {
            Some(earlier) => *earlier = variable,
            None => env.push(variable),
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(command: &[&str], args: &[&str]) -> Config {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Config { command: owned(command), args: owned(args), ..Config::default() }
    }

    #[test]
    fn commands_are_those_of_the_request_or_of_the_image() {
        let (entrypoint, cmd) = (["/e".to_owned()], ["c".to_owned()]);
        for (command, given, expected) in [
            (&[][..], &[][..], &["/e", "c"][..]),
            (&["/x"], &[], &["/x"]),
            (&["/x"], &["a"], &["/x", "a"]),
            (&[], &["a"], &["/e", "a"]),
        ] {
            assert_eq!(args(&config(command, given), &entrypoint, &cmd).unwrap(), expected);
        }
        assert!(args(&config(&[], &[]), &[], &[]).unwrap_err().message.contains("no command specified"));
        assert!(args(&config(&["a\0b"], &[]), &[], &[]).is_err());
    }
}
