//! `POST /containers/create`: nothing is made but a directory.

use std::{fs, os::unix::fs::DirBuilderExt, sync::Arc};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, id};
use berth_image::Image;
use berth_shim::record as disk;

use super::{
    object::Container,
    record::{Directory, Record},
    state::Last,
};
use crate::{
    api::create::{ContainerConfig, CreateBody},
    engine::Engine,
    http::error::{Failure, Result},
};

/// Makes a container that has never run.
///
/// # Errors
/// 404 for an image that is not here, 409 for a name in use, 400 for what contradicts itself.
pub(crate) fn create(engine: &Engine, name: &str, body: CreateBody) -> Result<Arc<Container>> {
    let wanted = body.config.image.clone();
    let image = engine
        .node
        .host
        .images
        .find(&wanted)?
        .ok_or_else(|| Failure::not_found(format!("No such image: {}", with_tag(&wanted))))?;
    let id = id::random_hex(32);
    let mut body = body;
    merge(&mut body.config, &image, &id);
    let command = command(&body.config)?;
    let lease = engine.node.host.images.lease(&image.layers);
    let lease = lease.ok_or_else(|| {
        Failure::not_found(format!("image {wanted} is damaged or being removed: pull it again"))
    })?;
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
    };
    super::run::check(&record)?;
    let name = engine.name(name, &id)?;
    let record = Record { name: name.clone(), ..record };
    let directory = Directory::of(&engine.node.host.layout.root, &id);
    if let Err(error) = blocking(|| write(&directory, &record)) {
        engine.containers.release(&name);
        return Err(error.into());
    }
    let container = Container::new(directory, record, Last::default(), lease);
    engine.containers.insert(container.clone());
    Ok(container)
}

/// Writes its directory under another name, and renames it when it is complete.
fn write(directory: &Directory, record: &Record) -> anyhow::Result<()> {
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
    fs::rename(path, directory.path()).with_context(|| format!("rename {}", path.display()))
}

/// Fills in what the request leaves to the image.
fn merge(config: &mut ContainerConfig, image: &Image, id: &str) {
    if config.hostname.is_empty() {
        config.hostname = id[..12].to_owned();
    }
    let Some(of_image) = image.config.config() else { return };
    if config.entrypoint.is_none() {
        // The image's command belongs to its own entry point.
        if config.cmd.is_none() {
            config.cmd = of_image.cmd().clone();
        }
        config.entrypoint = of_image.entrypoint().clone();
    }
    if config.working_dir.is_empty() {
        config.working_dir = of_image.working_dir().clone().unwrap_or_default();
    }
    if config.user.is_empty() {
        config.user = of_image.user().clone().unwrap_or_default();
    }
    if config.stop_signal.is_none() {
        config.stop_signal = of_image.stop_signal().clone();
    }
    let mut env = config.env.take().unwrap_or_default();
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in of_image.env().iter().flatten() {
        if !env.iter().any(|own| key(own) == key(entry)) {
            env.push(entry.clone());
        }
    }
    config.env = Some(env);
    if let Some(of_image) = of_image.labels() {
        let mut labels: std::collections::BTreeMap<_, _> = of_image.clone().into_iter().collect();
        labels.extend(config.labels.take().unwrap_or_default());
        config.labels = Some(labels);
    }
}

/// The program with its arguments.
fn command(config: &ContainerConfig) -> Result<Vec<String>> {
    let entrypoint = config.entrypoint.iter().flatten().filter(|word| !word.is_empty());
    let command: Vec<String> = entrypoint.chain(config.cmd.iter().flatten()).cloned().collect();
    match command.is_empty() {
        true => Err(Failure::bad_request("no command specified")),
        false => Ok(command),
    }
}

/// A name as dockerd repeats it: with the tag that was meant.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') || name.contains('@') {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}
