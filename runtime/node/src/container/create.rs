//! CreateContainer: checks the request, resolves every name in it, and writes the container's
//! directory. No process is made; StartContainer does that in one step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use berth_base::{
    clock::now,
    error::{Error, Result},
    id::ContainerId,
    layout,
    observe::{step_blocking, steps::create_container},
};
use berth_image::{self as image, Image, LayerKey, Names};
use berth_shim::{
    layout as shim_layout, record,
    spec::{Device, MountKind, OciRuntime, Program, Spec},
};
use nix::sys::signal::Signal;

use super::{
    config::{Config, Meta, MountSource, Seccomp, Security},
    object::Container,
    seccomp::{self, Filter},
    spec::{self, Inputs},
    state::State,
};
use crate::{
    cdi,
    host::Host,
    mount_points,
    sandbox::{self, Origin, Sandbox},
    security::apparmor::Profile,
};

/// Makes a container in `sandbox`.
///
/// # Errors
/// `NotFound` for an image that is not here, `InvalidArgument` for what the request may not say,
/// `FailedPrecondition` if the sandbox is not ready. `remove` undoes what a failed call leaves.
pub fn create(
    host: &Host,
    sandbox: &Sandbox,
    id: &ContainerId,
    unique_name: String,
    mut config: Config,
) -> Result<Arc<Container>> {
    if sandbox.state() != sandbox::State::Ready {
        return Err(Error::precondition(format!("sandbox {} is not ready", sandbox.meta.id)));
    }
    let image = host
        .images
        .find(&config.image)?
        .ok_or_else(|| Error::not_found(format!("no image {:?}: pull it first", config.image)))?;
    let mounted = mounted_images(host, &mut config)?;
    // The lease comes before anything that reads the layers: from here on a RemoveImage leaves them
    // on disk for as long as the container exists.
    let layers: BTreeSet<&LayerKey> =
        image.layers.iter().chain(mounted.values().flat_map(|image| &image.layers)).collect();
    let layers: Vec<LayerKey> = layers.into_iter().cloned().collect();
    let lease = host.images.lease(&layers).ok_or_else(|| {
        Error::not_found(
            "an image that the container uses is damaged or being removed: pull it again",
        )
    })?;
    check_sub_paths(host, &config, &mounted)?;
    let handler = host.handlers.oci_runtime(&sandbox.meta.config.runtime_handler)?;
    if config.init && handler.is_some() {
        let what = "init: this runtime handler cannot put a process in front of the program";
        return Err(Error::invalid(what));
    }
    // Below the pod's cgroup, for whose limits all containers of the pod count.
    let cgroup = host
        .cgroups
        .path(&sandbox.meta.config.cgroup_parent, id.as_str())
        .map_err(|error| Error::invalid(error.to_string()))?;
    // Devices are resolved now and not at the start, so that a device that is missing fails the
    // request that names it.
    let named =
        cdi::resolve(&host.cdi_dirs, &cdi::names(&config.cdi_devices, &config.annotations)?)?;
    let (nodes, mut device_rules) =
        spec::resolve_devices(&config.devices, &named.device_nodes, &config.security)?;
    device_rules.extend(config.device_rules.iter().cloned());
    let mut meta = Meta {
        id: id.clone(),
        sandbox: sandbox.meta.id.clone(),
        unique_name,
        created_at: now(),
        image_id: image.id.to_string(),
        image_name: image_name(host, &image, &config),
        image_ref: image_ref(host, &image),
        layers,
        mount_points: None,
        cgroup,
        device_rules,
        log_path: sandbox.meta.config.log_path(&config.log_path),
        stop_signal: stop_signal(&config, &image)?,
        config,
    };
    let oci_runtime = handler.map(|path| OciRuntime {
        path: path.to_owned(),
        state: host.layout.oci(),
        cgroup: format!("/{}", meta.cgroup),
        devices: meta.devices().accesses(),
    });
    let found =
        Found { image: &image, mounted: &mounted, devices: nodes, named: &named, oci_runtime };
    let mut spec = build(host, sandbox, &meta, found)?;
    if let Program::Container(container) = &mut spec.program {
        let name = mount_points::name(&container.mounts);
        container.rootfs.mount_points = Some(host.layout.mount_points().join(&name));
        meta.mount_points = Some(name);
    }
    // Compiled here, so that an invalid profile fails CreateContainer and not the start.
    let filters = Filters {
        seccomp: filter(&meta, &spec)?,
        // With cgroup v2 no file says which devices may be used: the shim attaches a BPF program.
        devices: host.cgroups.device_program(&meta.devices()),
    };
    // Written under another name, and renamed when it is complete. A directory with the final name
    // therefore always has all of its records, and start-up removes whatever has the other one.
    let directory = host.layout.container(id);
    let incomplete = host.layout.incomplete(id);
    let state = host.layout.container_state(id);
    step_blocking(create_container::WRITE, || {
        write(&incomplete, &state, (&meta, &spec), &filters)
    })?;
    step_blocking(create_container::COMMIT, || {
        fs::rename(&incomplete, &directory)
            .with_context(|| format!("rename {}", incomplete.display()))
    })?;
    Ok(Arc::new(Container::new(host, meta, State::Created, lease)))
}

/// The reference that the kubelet knows an image by (`image_ref`): a repository digest if it has
/// one, else the image's id.
fn image_ref(host: &Host, image: &Image) -> String {
    host.images.names(image).digests.into_iter().next().unwrap_or_else(|| image.id.to_string())
}

/// The name that a status shows to people: a tag or a digest, else the image's id.
fn image_name(host: &Host, image: &Image, config: &Config) -> String {
    let Names { tags, digests } = host.images.names(image);
    let asked = [config.user_specified_image.as_str(), &config.image];
    choose_name(asked, &tags, &digests).cloned().unwrap_or_else(|| image.id.to_string())
}

/// Chooses among an image's names the one that was asked for.
///
/// The kubelet asks by id, and says in `user_specified_image` what the user wrote. That name may
/// belong to another image by now. The first tag is taken then, as containerd and CRI-O do, else
/// the first digest.
fn choose_name<'a>(
    asked: [&str; 2],
    tags: &'a [String],
    digests: &'a [String],
) -> Option<&'a String> {
    // Both names are compared in their full form: `busybox` is `docker.io/library/busybox:latest`.
    let mut asked = asked.into_iter().filter_map(image::normalize);
    let names = || tags.iter().chain(digests);
    asked.find_map(|name| names().find(|known| **known == name)).or_else(|| names().next())
}

type MountedImages = BTreeMap<String, Arc<Image>>;

/// The images that `config` mounts as volumes (KEP 4639), by the name that it uses. Their
/// `image_ref` is filled in, for statuses.
fn mounted_images(host: &Host, config: &mut Config) -> Result<MountedImages> {
    let mut found = MountedImages::new();
    for mount in &mut config.mounts {
        let MountSource::Image { image: name, image_ref: known_as, .. } = &mut mount.source else {
            continue;
        };
        let image = host.images.find(name)?;
        let image = image
            .ok_or_else(|| Error::not_found(format!("mounts: no image {name:?}: pull it first")))?;
        // The name may be that of another image by the time of a status.
        *known_as = image_ref(host, &image);
        found.insert(name.clone(), image);
    }
    Ok(found)
}

/// Refuses an image volume whose `image_sub_path` is not in the image. Found out here, because an
/// error of CreateContainer shows up in the pod's events under this reason (KEP 4639).
fn check_sub_paths(host: &Host, config: &Config, mounted: &MountedImages) -> Result<()> {
    for mount in &config.mounts {
        let MountSource::Image { image: name, sub_path, .. } = &mount.source else { continue };
        let layers = mounted.get(name).map_or(&[][..], |image| &image.layers);
        let layers: Vec<_> =
            layers.iter().map(|key| host.layout.layers().join(files_of(key))).collect();
        let there = sub_path.as_os_str().is_empty()
            || image::contains_path(&layers, sub_path).context("search an image for a sub path")?;
        if !there {
            let what = format!(
                "ImageVolumeMountFailed: image {name:?} has no {:?}",
                sub_path.display().to_string()
            );
            return Err(Error::invalid(what));
        }
    }
    Ok(())
}

/// Where a layer's files are, relative to the layers' directory.
fn files_of(key: &LayerKey) -> String {
    format!("{key}/{}", image::FILES)
}

/// What the names in a request were resolved to.
struct Found<'a> {
    image: &'a Image,
    mounted: &'a MountedImages,
    devices: Vec<Device>,
    named: &'a cdi::Edits,
    oci_runtime: Option<OciRuntime>,
}

fn build(host: &Host, sandbox: &Sandbox, meta: &Meta, found: Found<'_>) -> Result<Spec> {
    let Found { image, mounted, devices, named, oci_runtime } = found;
    let layers = |image: &Image| image.layers.iter().map(files_of).collect();
    spec::build(&Inputs {
        id: meta.id.as_str(),
        config: &meta.config,
        sandbox: &sandbox.meta,
        hostname: sandbox.meta.config.effective_hostname()?,
        image: &image.config,
        layers: layers(image),
        mounted: mounted.iter().map(|(name, image)| (name.clone(), layers(image))).collect(),
        layout: &host.layout,
        socket_dir: host.layout.container_state(&meta.id),
        records: host.layout.records_of(&meta.id, &meta.sandbox),
        log: meta.log_path.clone(),
        cgroups: host.cgroups.directories(&meta.cgroup),
        devices,
        named,
        apparmor: apparmor(host, sandbox, &meta.config.security)?,
        oci_runtime,
        labels: sandbox
            .meta
            .labels
            .as_ref()
            .map(|pod| host.selinux.for_container(pod, &meta.config.security.selinux))
            .transpose()?,
        v1_names: host.cgroups.v1_names(),
        own_v1: match meta.config.security.host_cgroup {
            true => host.cgroups.v1_directories(&meta.cgroup),
            false => Vec::new(),
        },
    })
}

/// The profile of a container. A privileged one has none; but a client of the engine may name one
/// for it.
fn apparmor(host: &Host, sandbox: &Sandbox, security: &Security) -> Result<Option<String>> {
    let is_named = matches!(security.apparmor, Profile::Localhost(_))
        && sandbox.meta.config.origin == Origin::Engine;
    match security.privileged && !is_named {
        true => Ok(None),
        false => host.apparmor.choose(&security.apparmor),
    }
}

/// The container's seccomp filter. `None` for a privileged or unconfined one.
fn filter(meta: &Meta, spec: &Spec) -> Result<Option<Filter>> {
    let Program::Container(container) = &spec.program else { return Ok(None) };
    let oci = container.oci_runtime.is_some();
    let capabilities = container.process.capabilities;
    let security = &meta.config.security;
    if !security.is_filtered() {
        return Ok(None);
    }
    if let Some(text) = &security.seccomp_profile {
        return seccomp::given_profile(text, capabilities, oci).map(Some);
    }
    match &security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => seccomp::default_profile(capabilities, oci).map(Some),
        Seccomp::Localhost(path) => seccomp::local_profile(path, oci).map(Some),
    }
}

/// Filters as the shim loads them, without parsing: it is kept small.
struct Filters {
    seccomp: Option<Filter>,
    devices: Option<Vec<u8>>,
}

impl Filters {
    /// Each with the name of its file.
    fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let seccomp = self.seccomp.as_ref().map(|filter| match filter {
            Filter::Program(program) => (shim_layout::SECCOMP, program.as_ref()),
            Filter::Profile(profile) => (shim_layout::SECCOMP_PROFILE, profile.as_slice()),
        });
        seccomp
            .into_iter()
            .chain(self.devices.as_ref().map(|program| (shim_layout::DEVICES, program.as_slice())))
    }
}

/// Writes the directory that `create` renames, and makes the one of the shim's socket.
fn write(
    directory: &Path,
    state: &Path,
    (meta, spec): (&Meta, &Spec),
    filters: &Filters,
) -> anyhow::Result<()> {
    // Its records hold environment variables, which may be secrets. `upper` below it has mode 0755,
    // because the container's root directory takes its mode from there.
    let private = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    private.with_context(|| format!("make {}", directory.display()))?;
    let scratch = needs_scratch(spec).then_some(shim_layout::SCRATCH);
    let own_layer = match meta.config.writable_layer {
        Some(_) => &[][..],
        None => &[shim_layout::UPPER, shim_layout::WORK],
    };
    for name in own_layer.iter().copied().chain(scratch) {
        let path = directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    // For the shim's socket, which is on a tmpfs.
    fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
    record::write_new(&directory.join(layout::container::META), meta)
        .context("write the container's record")?;
    record::write_new(&directory.join(shim_layout::SPEC), spec)
        .context("write the container's spec")?;
    for (name, content) in filters.files() {
        fs::write(directory.join(name), content).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// Whether the shim needs a directory to mount an image's files at for a moment.
fn needs_scratch(spec: &Spec) -> bool {
    let Program::Container(container) = &spec.program else { return false };
    container.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Image { .. }))
}

/// The request's stop signal (KEP 4960), else the image's, else SIGTERM.
fn stop_signal(config: &Config, image: &Image) -> Result<i32> {
    if let Some(signal) = config.stop_signal {
        return Ok(signal);
    }
    let of_image = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.stop_signal().clone())
        .unwrap_or_default();
    if of_image.is_empty() {
        return Ok(Signal::SIGTERM as i32);
    }
    parse_signal(&of_image).ok_or_else(|| {
        Error::invalid(format!(
            "the image's StopSignal {of_image:?} is not a signal of Linux; lifecycle.stopSignal \
             of the pod overrides it"
        ))
    })
}

/// Parses `SIGTERM`, `TERM`, `15` or `RTMIN+3`, as Docker takes them.
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=nix::libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    // Real-time signals are counted from what the C library leaves of them: it uses the first two
    // itself (signal(7)).
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => nix::libc::SIGRTMIN() + offset(rest)?,
        (None, Some(rest)) => nix::libc::SIGRTMAX() + offset(rest)?,
        (None, None) => {
            return format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32);
        }
    };
    (nix::libc::SIGRTMIN()..=nix::libc::SIGRTMAX()).contains(&real_time).then_some(real_time)
}

#[cfg(test)]
mod tests {
    use super::{choose_name, parse_signal};

    #[test]
    fn an_image_is_called_as_it_was_asked_for_if_that_is_its_name() {
        let owned =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let digest = format!("a.io/x@sha256:{}", "0".repeat(64));
        let both = format!("a.io/x:9@sha256:{}", "0".repeat(64));
        let (tags, digests) =
            (owned(&["a.io/x:1", "docker.io/library/x:latest"]), owned(&[&digest]));
        for (asked, tags, digests, expected) in [
            (["x", "sha256:0123"], &tags[..], &digests[..], Some("docker.io/library/x:latest")),
            (["", "docker.io/x"], &tags, &digests, Some("docker.io/library/x:latest")),
            (["a.io/x:2", "0123"], &tags, &digests, Some("a.io/x:1")),
            ([&digest, "0123"], &tags, &digests, Some(digest.as_str())),
            ([&both, "0123"], &tags, &digests, Some(&digest)),
            (["NO name", "0123"], &[], &digests, Some(&digest)),
            (["x", "0123"], &[], &[], None),
        ] {
            assert_eq!(
                choose_name(asked, tags, digests).map(String::as_str),
                expected,
                "{asked:?}"
            );
        }
    }

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
