//! CreateContainer: everything is checked and resolved, a directory is written and renamed. No process is made.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use berth_shim::{
    layout as shim_layout, record,
    spec::{Device, OciRuntime, Program, Spec},
};
use nix::sys::signal::Signal;

use super::{
    Config, Container, Meta, MountSource, Seccomp, State, devices,
    seccomp::{self, Filter},
    spec::{self, Inputs},
};
use crate::{
    cdi,
    clock::now,
    error::{Error, Result},
    id::ContainerId,
    image::{self, Image},
    layout,
    machine::Machine,
    sandbox::{self, Sandbox},
};

/// Makes a container in `sandbox`. What a failed one leaves, `remove` finds.
pub(crate) fn create(
    machine: &Machine,
    sandbox: &Sandbox,
    id: &ContainerId,
    unique_name: String,
    mut config: Config,
) -> Result<Arc<Container>> {
    if sandbox.state() != sandbox::State::Ready {
        return Err(Error::precondition(format!("sandbox {} is not ready", sandbox.meta.id)));
    }
    let image = machine
        .images
        .find(&config.image)?
        .ok_or_else(|| Error::not_found(format!("no image {:?}: pull it first", config.image)))?;
    let mounted = mounted_images(machine, &mut config)?;
    let layers: BTreeSet<&String> =
        image.layers.iter().chain(mounted.values().flat_map(|image| &image.layers)).collect();
    let layers: Vec<String> = layers.into_iter().cloned().collect();
    let lease = machine
        .images
        .lease(&layers)
        .ok_or_else(|| Error::not_found("an image of it is damaged, or being removed: pull it again"))?;
    check_sub_paths(machine, &config, &mounted)?;
    let handler = machine.handlers.oci_runtime(&sandbox.meta.config.runtime_handler)?;
    let cgroup = machine
        .cgroups
        .path(&sandbox.meta.config.cgroup_parent, id.as_str())
        .map_err(|error| Error::invalid(error.to_string()))?;
    let named = cdi::resolve(&machine.cdi_dirs, &config.cdi_devices)?;
    let (nodes, device_rules) = devices::resolve(&config.devices, &named.device_nodes, &config.security)?;
    let meta = Meta {
        id: id.clone(),
        sandbox: sandbox.meta.id.clone(),
        unique_name,
        created_at: now(),
        image_id: image.id.to_string(),
        image_ref: image_ref(machine, &image),
        layers,
        cgroup,
        device_rules,
        log_path: sandbox.meta.config.log_path(&config.log_path),
        stop_signal: stop_signal(&config, &image)?,
        config,
    };
    let oci_runtime = handler.map(|path| OciRuntime {
        path: path.to_owned(),
        state: machine.layout.oci(),
        cgroup: format!("/{}", meta.cgroup),
        devices: meta.devices().accesses(),
    });
    let found = Found { image: &image, mounted: &mounted, devices: nodes, named: &named, oci_runtime };
    let spec = build(machine, sandbox, &meta, found)?;
    let filters = Filters { seccomp: filter(&meta, &spec)?, devices: machine.cgroups.device_program(&meta.devices()) };
    let directory = machine.layout.container(id);
    let half_made = machine.layout.half_made(id);
    let state = machine.layout.container_state(id);
    write(&half_made, &state, (&meta, &spec), &filters)?;
    fs::rename(&half_made, &directory).with_context(|| format!("rename {}", half_made.display()))?;
    Ok(Arc::new(Container::new(meta, State::Created, lease)))
}

/// What the kubelet knows an image by: a digest of its repository, else the id.
fn image_ref(machine: &Machine, image: &Image) -> String {
    machine.images.names(image).1.into_iter().next().unwrap_or_else(|| image.id.to_string())
}

type MountedImages = BTreeMap<String, Arc<Image>>;

/// The images that `config` mounts, by how it names them; it is told what they are.
fn mounted_images(machine: &Machine, config: &mut Config) -> Result<MountedImages> {
    let mut found = MountedImages::new();
    for mount in &mut config.mounts {
        let MountSource::Image { image: name, image_ref: known_as, .. } = &mut mount.source else { continue };
        let image = machine.images.find(name)?;
        let image = image.ok_or_else(|| Error::not_found(format!("mounts: no image {name:?}: pull it first")))?;
        *known_as = image_ref(machine, &image);
        found.insert(name.clone(), image);
    }
    Ok(found)
}

fn check_sub_paths(machine: &Machine, config: &Config, mounted: &MountedImages) -> Result<()> {
    for mount in &config.mounts {
        let MountSource::Image { image: name, sub_path, .. } = &mount.source else { continue };
        let layers = mounted.get(name).map_or(&[][..], |image| &image.layers);
        let layers: Vec<_> = layers.iter().map(|key| machine.layout.layers().join(files_of(key))).collect();
        let there =
            sub_path.as_os_str().is_empty() || image::contains(&layers, sub_path).context("look into an image")?;
        if !there {
            let what = format!("ImageVolumeMountFailed: image {name:?} has no {:?}", sub_path.display().to_string());
            return Err(Error::invalid(what));
        }
    }
    Ok(())
}

/// Below the layers' directory.
fn files_of(key: &str) -> String {
    format!("{key}/{}", image::FILES)
}

/// What the names in a request stand for.
struct Found<'a> {
    image: &'a Image,
    mounted: &'a MountedImages,
    devices: Vec<Device>,
    named: &'a cdi::Edits,
    oci_runtime: Option<OciRuntime>,
}

fn build(machine: &Machine, sandbox: &Sandbox, meta: &Meta, found: Found<'_>) -> Result<Spec> {
    let Found { image, mounted, devices, named, oci_runtime } = found;
    let layers = |image: &Image| image.layers.iter().map(|key| files_of(key)).collect();
    spec::build(&Inputs {
        id: meta.id.as_str(),
        config: &meta.config,
        sandbox: &sandbox.meta,
        image: &image.config,
        layers: layers(image),
        mounted: mounted.iter().map(|(name, image)| (name.clone(), layers(image))).collect(),
        layout: &machine.layout,
        socket_dir: machine.layout.container_state(&meta.id),
        log: meta.log_path.clone(),
        cgroups: machine.cgroups.directories(&meta.cgroup),
        devices,
        named,
        apparmor: match meta.config.security.privileged {
            true => None,
            false => machine.apparmor.choose(&meta.config.security.apparmor)?,
        },
        oci_runtime,
        labels: sandbox
            .meta
            .labels
            .as_ref()
            .map(|pod| machine.selinux.for_container(pod, &meta.config.security.selinux))
            .transpose()?,
        v1_names: machine.cgroups.v1_names(),
    })
}

/// The seccomp filter of a container that has one.
fn filter(meta: &Meta, spec: &Spec) -> Result<Option<Filter>> {
    let Program::Container(container) = &spec.program else { return Ok(None) };
    let oci = container.oci_runtime.is_some();
    match &meta.config.security.seccomp {
        _ if !container.process.seccomp => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => seccomp::default_profile(container.process.capabilities, oci).map(Some),
        Seccomp::Localhost(path) => seccomp::local_profile(path, oci).map(Some),
    }
}

/// Programs for the kernel, as it takes them.
struct Filters {
    seccomp: Option<Filter>,
    devices: Option<Vec<u8>>,
}

impl Filters {
    fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let seccomp = self.seccomp.as_ref().map(|filter| match filter {
            Filter::Program(program) => (shim_layout::SECCOMP, program.as_ref()),
            Filter::Profile(profile) => (shim_layout::SECCOMP_PROFILE, profile.as_slice()),
        });
        seccomp.into_iter().chain(self.devices.as_ref().map(|program| (shim_layout::DEVICES, program.as_slice())))
    }
}

fn write(directory: &Path, state: &Path, (meta, spec): (&Meta, &Spec), filters: &Filters) -> anyhow::Result<()> {
    for name in [shim_layout::UPPER, shim_layout::WORK, shim_layout::EXEC] {
        let path = directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
    record::write(&directory.join(layout::container::META), meta).context("write the container's record")?;
    record::write(&directory.join(shim_layout::SPEC), spec).context("write the container's spec")?;
    for (name, content) in filters.files() {
        fs::write(directory.join(name), content).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// Of the request, else of the image, else SIGTERM.
fn stop_signal(config: &Config, image: &Image) -> Result<i32> {
    if let Some(signal) = config.stop_signal {
        return Ok(signal);
    }
    let of_image = image.config.config().as_ref().and_then(|config| config.stop_signal().clone()).unwrap_or_default();
    if of_image.is_empty() {
        return Ok(Signal::SIGTERM as i32);
    }
    parse_signal(&of_image)
        .ok_or_else(|| Error::invalid(format!("the image's stop signal {of_image:?} is not a signal")))
}

/// `SIGTERM`, `TERM`, `15`, `RTMIN+3`.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=nix::libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => nix::libc::SIGRTMIN() + offset(rest)?,
        (None, Some(rest)) => nix::libc::SIGRTMAX() + offset(rest)?,
        (None, None) => return format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32),
    };
    (nix::libc::SIGRTMIN()..=nix::libc::SIGRTMAX()).contains(&real_time).then_some(real_time)
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals_by_name_and_number() {
        for (text, signal) in [
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX+1", None),
            ("0", None),
            ("99", None),
            ("SIGNOTHING", None),
        ] {
            assert_eq!(parse_signal(text), signal, "{text}");
        }
    }
}
