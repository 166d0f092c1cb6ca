//! `POST /containers/create`: nothing is made but a directory.

use std::{fs, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    clock::now,
    config::Driver,
    error::Kind,
    id,
    observe::{step_blocking, steps::docker_create},
    trash,
};
use berth_image::Image;
use berth_node::container::declared_volumes;
use berth_shim::record as disk;
use http::StatusCode;

use super::{
    check::check,
    defaults, files, links,
    merge::{merge, of_image},
    mounts::{self, MountPoint},
    object::{Container, ImageLease},
    platform::Platform,
    record::{Directory, Record},
    run,
    state::Last,
};
use crate::{
    api::{
        create::{ContainerConfig, CreateBody},
        host_config::HostConfig,
    },
    engine::Engine,
    http::error::{Failure, Result},
    image_name,
    network::plan,
    sysinfo::SysInfo,
    volumes::{self, Filling, Wanted},
};

/// Whose container it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    User,
    /// A step of a build.
    Build,
}

/// Makes a container that has never run, and returns it with the warnings for its user.
///
/// # Errors
/// 404 for an image that is not here, 409 for a name in use, 400 for what contradicts itself.
pub(crate) fn create(
    engine: &Engine,
    name: &str,
    platform: Option<&Platform>,
    body: CreateBody,
) -> Result<(Arc<Container>, Vec<String>)> {
    create_for(Owner::User, engine, name, platform, body)
}

/// Makes the container of a step of a build, which goes with the build or with the daemon.
///
/// # Errors
/// As `create`.
pub(crate) fn of_build(engine: &Engine, body: CreateBody) -> Result<(Arc<Container>, Vec<String>)> {
    create_for(Owner::Build, engine, "", None, body)
}

fn create_for(
    owner: Owner,
    engine: &Engine,
    name: &str,
    platform: Option<&Platform>,
    body: CreateBody,
) -> Result<(Arc<Container>, Vec<String>)> {
    let mut body = body;
    let machine = SysInfo::read();
    name_network(&mut body);
    let warnings = check(engine, &mut body, &machine)?;
    mounts::check_propagation(&engine.node.host.layout, &body.host_config)?;
    check_cgroup_parent(engine, &body.host_config.cgroup_parent)?;
    check_runtime(engine, &body.host_config.runtime)?;
    resolve(engine, &mut body.host_config)?;
    defaults::fill_in(&mut body.host_config, &machine);
    let id = id::random_hex(32);
    let image = find_image(engine, &body.config.image, platform)?;
    let document = engine.node.host.images.config_document(&image)?;
    merge(&mut body.config, of_image(&document));
    name_host(&mut body, &id)?;
    let command = command(&body.config)?;
    let lease = engine.node.host.images.lease(&image.layers);
    let lease = lease.ok_or_else(|| {
        let wanted = &body.config.image;
        Failure::not_found(format!("image {wanted} is damaged or being removed: pull it again"))
    })?;
    let lease =
        ImageLease { _image: Some(engine.node.host.images.keep(&image.id)), _layers: lease };
    let mounts = mounts::plan(engine, &body.config, &body.host_config)?;
    declared_volumes(&image.config)?;
    let record = Record {
        id: id.clone(),
        name: String::new(),
        created_at: now(),
        image_id: image.id.to_string(),
        layers: image.layers.clone(),
        path: command[0].clone(),
        args: command[1..].to_vec(),
        config: body.config,
        host_config: body.host_config,
        networking: body.networking_config,
        lists_networks: false,
        mounts,
        is_lost: false,
        is_of_build: owner == Owner::Build,
    };
    plan::mappings(&record)?;
    let name = engine.name(name, &id)?;
    let record = Record { name: name.clone(), ..record };
    let directory = Directory::of(&engine.node.host.layout.root, &id);
    let host = &engine.node.host;
    let made = make(engine, &directory, &record);
    if let Err(error) = made {
        engine.containers.release(&name);
        engine.volumes.release(&id);
        volumes::discard_unnamed(engine, record.unnamed_volumes());
        return Err(error.into());
    }
    let container = Container::new(directory, record, Last::default(), lease, host.reserve.clone());
    engine.containers.insert(container.clone());
    Ok((container, warnings))
}

/// `default` is a name for the network that containers have by default.
fn name_network(body: &mut CreateBody) {
    let host = &mut body.host_config;
    host.network_mode = defaults::network_mode(&host.network_mode).to_owned();
    let endpoints = &mut body.networking_config.endpoints_config;
    if let Some(endpoint) = endpoints.remove("default") {
        endpoints.entry(host.network_mode.clone()).or_insert(endpoint);
    }
}

/// Every cgroup of systemd's is in a slice.
fn check_cgroup_parent(engine: &Engine, parent: &str) -> Result<()> {
    let is_name = parent.is_empty() || (parent.len() > 6 && parent.ends_with(".slice"));
    match is_name || engine.node.host.cgroups.driver == Driver::Cgroupfs {
        true => Ok(()),
        false => Err(Failure::bad_request(
            "cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"",
        )),
    }
}

/// dockerd's own names for the runtime that it has by default are names of berth itself.
fn check_runtime(engine: &Engine, name: &str) -> Result<()> {
    match engine.node.host.handlers.oci_runtime(run::handler(name)).is_ok() {
        true => Ok(()),
        false => Err(Failure::bad_request(format!("unknown or invalid runtime name: {name}"))),
    }
}

/// Replaces the names of other containers by their ids, which outlive a renaming.
fn resolve(engine: &Engine, host: &mut HostConfig) -> Result<()> {
    for (mode, must_exist) in [
        (&mut host.ipc_mode, true),
        (&mut host.pid_mode, true),
        // Whether that one is there, its start tells.
        (&mut host.network_mode, false),
    ] {
        let Some(name) = mode.strip_prefix("container:") else { continue };
        match engine.containers.find(name) {
            Ok(other) => *mode = format!("container:{}", other.id),
            Err(failure) if must_exist => return Err(Failure::bad_request(failure.message)),
            Err(_) => {}
        }
    }
    links::resolve(engine, host.links.as_deref().unwrap_or_default())?;
    Ok(())
}

fn find_image(engine: &Engine, wanted: &str, platform: Option<&Platform>) -> Result<Arc<Image>> {
    if wanted.is_empty() {
        return Err(Failure::bad_request("no command specified"));
    }
    let found = engine.node.host.images.find(wanted).map_err(|error| match error.kind {
        Kind::InvalidArgument => Failure::bad_request(
            image_name::refusal(wanted).unwrap_or_else(|| "invalid reference format".to_owned()),
        ),
        _ => error.into(),
    })?;
    let image = found.ok_or_else(|| {
        Failure::not_found(format!("No such image: {}", image_name::with_tag(wanted)))
    })?;
    match platform.filter(|platform| !platform.is_of(&image)) {
        None => Ok(image),
        Some(asked) => Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!(
                "image with reference {wanted} was found but its platform ({}) does not match the \
                 specified platform ({asked})",
                Platform::of(&image)
            ),
        )),
    }
}

/// The host's own name with the host's network, else the beginning of the id.
fn name_host(body: &mut CreateBody, id: &str) -> Result<()> {
    if !body.config.hostname.is_empty() {
        return Ok(());
    }
    body.config.hostname = match body.host_config.network_mode.as_str() {
        "host" => {
            let name = nix::unistd::gethostname().context("gethostname")?;
            name.to_string_lossy().into_owned()
        }
        _ => id[..12].to_owned(),
    };
    Ok(())
}

/// Makes its directory under another name, then the volumes that it has for its own, and renames it when
/// it is complete. What a daemon does not finish, the next one takes away.
fn make(engine: &Engine, directory: &Directory, record: &Record) -> anyhow::Result<()> {
    let host = &engine.node.host;
    step_blocking(docker_create::RECORD, || blocking(|| write(directory, record, &host.boot_id)))?;
    let made = step_blocking(docker_create::VOLUMES, || blocking(|| make_volumes(engine, record)))
        .and_then(|()| step_blocking(docker_create::NAME, || blocking(|| name(directory, record))));
    if made.is_err() {
        let _ = trash::discard(&host.layout, directory.incomplete().path());
    }
    made
}

/// Writes its directory, under another name.
fn write(directory: &Directory, record: &Record, boot_id: &str) -> anyhow::Result<()> {
    let incomplete = directory.incomplete();
    let path = incomplete.path();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make {}", path.display()))?;
    for name in ["upper", "work"] {
        fs::create_dir(path.join(name)).with_context(|| format!("make {name}"))?;
    }
    disk::write_new(&incomplete.record(), record).context("write the container's record")?;
    if record.outlives_boot() {
        // What the directory holds before its name, so that a power loss shows nothing half-made.
        disk::sync(&incomplete.record()).context("sync the container's record")
    } else {
        std::os::unix::fs::symlink(boot_id, incomplete.boot()).context("note the boot")
    }
}

/// Makes the volumes that are not there, and fills those that are empty.
fn make_volumes(engine: &Engine, record: &Record) -> anyhow::Result<()> {
    let mut empty = Vec::new();
    let is_volume = |mount: &&MountPoint| mount.kind == mounts::Kind::Volume;
    for mount in record.mounts.iter().filter(is_volume) {
        let is_of_boot = mount.details.is_unnamed && !record.outlives_boot();
        while engine.volumes.hold(&mount.name, &record.id).is_none() {
            engine.make_volume(Wanted {
                name: mount.name.clone(),
                labels: mount.details.labels.clone(),
                is_of_boot,
            })?;
        }
        if mount.details.is_filled {
            empty.push(Filling {
                data: PathBuf::from(&mount.source),
                source: PathBuf::from(&mount.destination),
                is_shared: engine.volumes.users(&mount.name) > 1,
                is_durable: !is_of_boot,
            });
        }
    }
    // Most volumes have something already, or their image has nothing for them.
    match empty.is_empty() {
        true => Ok(()),
        false => files::fill_volumes(&engine.node.host.layout, record, empty),
    }
}

/// Gives its directory the name by which it is found.
fn name(directory: &Directory, record: &Record) -> anyhow::Result<()> {
    let incomplete = directory.incomplete();
    let path = incomplete.path();
    fs::rename(path, directory.path()).with_context(|| format!("rename {}", path.display()))?;
    if record.outlives_boot() {
        let synced = disk::sync_parent(directory.path());
        if synced.is_err() {
            // It is refused, and must not be there after the next start.
            let _ = fs::remove_dir_all(directory.path());
        }
        synced.context("sync the names of containers")?;
    }
    Ok(())
}

/// The program with its arguments.
fn command(config: &ContainerConfig) -> Result<Vec<String>> {
    let words = config.entrypoint.iter().chain(&config.cmd).flatten();
    let command: Vec<String> = words.cloned().collect();
    match command.is_empty() {
        true => Err(Failure::bad_request("no command specified")),
        false => Ok(command),
    }
}
