//! Which mounts a container gets: those of other containers, of the request and of the image.

use std::path::Path;

use berth_base::{id, layout::Layout};
use http::StatusCode;

use super::{
    Details, Kind, MountPoint,
    request::{destination, mount_points},
};
use crate::{
    api::{create::ContainerConfig, host_config::HostConfig},
    container::object::Container,
    engine::Engine,
    http::error::{Failure, Result},
    volumes,
};

/// All of them. Volumes have their names and their places, and are not made yet.
///
/// # Errors
/// In dockerd's words: for what contradicts itself, for a container that is not here, for a driver that
/// is none.
pub(crate) fn plan(
    engine: &Engine,
    config: &ContainerConfig,
    host: &HostConfig,
) -> Result<Vec<MountPoint>> {
    let mut points: Vec<MountPoint> = Vec::new();
    for others in host.volumes_from.iter().flatten() {
        for inherited in of_container(engine, others)? {
            replace(&mut points, inherited);
        }
    }
    for mut asked in mount_points(host)? {
        follow_host(&engine.node.host.layout, &mut asked);
        if asked.kind == Kind::Volume {
            name_volume(engine, host, &mut asked)?;
            if asked.mode.is_empty() {
                "z".clone_into(&mut asked.mode);
            }
        }
        replace(&mut points, asked);
    }
    for target in config.volumes.iter().flatten().map(|(target, _)| target) {
        // An image may declare anything. What is relative is below the root, as for the runtimes.
        let Ok(target) = destination(&format!("/{target}")) else {
            continue;
        };
        let is_taken = points.iter().any(|point| point.destination == target)
            || host.tmpfs.iter().flatten().any(|(path, _)| *path == target);
        if !is_taken {
            let mut point = unnamed(&target);
            name_volume(engine, host, &mut point)?;
            points.push(point);
        }
    }
    Ok(points)
}

/// Adds a mount, which takes the place of an earlier one.
fn replace(points: &mut Vec<MountPoint>, point: MountPoint) {
    points.retain(|other| other.destination != point.destination);
    points.push(point);
}

/// A volume that only a place is known of.
fn unnamed(destination: &str) -> MountPoint {
    let (source, destination) = (Path::new(""), Path::new(destination));
    MountPoint {
        details: Details { is_filled: true, is_unnamed: true, ..Details::default() },
        ..MountPoint::of_volume(String::new(), source, destination, true)
    }
}

fn name_volume(engine: &Engine, host: &HostConfig, point: &mut MountPoint) -> Result<()> {
    if point.name.is_empty() {
        point.name = id::random_hex(32);
        point.details.labels.get_or_insert_default().insert(volumes::UNNAMED.into(), String::new());
    }
    let driver = host.volume_driver.as_str();
    if !["", volumes::DRIVER].contains(&driver) {
        return Err(unknown_driver(&point.name, driver));
    }
    point.source = engine.volumes.data(&point.name).display().to_string();
    Ok(())
}

/// What is said to somebody who asks for a driver: there is one.
pub(crate) fn unknown_driver(name: &str, driver: &str) -> Failure {
    let text = format!(
        "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
    );
    Failure::new(StatusCode::NOT_FOUND, text)
}

/// The mounts that a container has for another: `ID[:MODE]`.
fn of_container(engine: &Engine, from: &str) -> Result<Vec<MountPoint>> {
    let (name, mode) = from.split_once(':').unwrap_or((from, ""));
    if name.is_empty() {
        return Err(Failure::bad_request("volumes-from specification cannot be an empty string"));
    }
    if !["", "ro", "rw", "z", "Z", "ro,z", "rw,z", "ro,Z", "rw,Z"].contains(&mode) {
        return Err(Failure::bad_request(format!("invalid mode: {mode}")));
    }
    let other =
        engine.containers.find(name).map_err(|failure| Failure::bad_request(failure.message))?;
    Ok(of_other(&other, !mode.contains("ro")))
}

fn of_other(other: &Container, writable: bool) -> Vec<MountPoint> {
    let mut points = other.record().mounts.clone();
    // What is in memory is the other's own.
    points.retain(|point| point.kind != Kind::Tmpfs);
    for point in &mut points {
        point.writable &= writable;
        point.mode.clear();
        point.details.is_filled = false;
    }
    points
}

/// A bind that has the daemon's mounts in it follows the host where the request does not say otherwise:
/// else the container would keep what the daemon has unmounted, and with it the files and networks of
/// other containers.
fn follow_host(layout: &Layout, point: &mut MountPoint) {
    let is_near = is_beside(point, &layout.root) || is_beside(point, &layout.state);
    if is_near && !point.details.names_propagation {
        "rslave".clone_into(&mut point.propagation);
    }
}

/// Refuses a bind that has the daemon's root directory in it, or is in that, and would not follow the
/// host.
///
/// # Errors
/// 400, in dockerd's words.
pub(crate) fn check_propagation(layout: &Layout, host: &HostConfig) -> Result<()> {
    let follows = |point: &MountPoint| {
        !point.details.names_propagation || ["rslave", "rshared"].contains(&&*point.propagation)
    };
    let points = mount_points(host)?;
    match points.iter().find(|point| is_beside(point, &layout.root) && !follows(point)) {
        None => Ok(()),
        Some(MountPoint { source, propagation, .. }) => Err(Failure::bad_request(format!(
            "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when \
             mount source is within the daemon root, daemon root: {:?}, bind mount source: \
             {source:?}, propagation: {propagation:?}",
            layout.root.display().to_string()
        ))),
    }
}

fn is_beside(point: &MountPoint, own: &Path) -> bool {
    let source = Path::new(&point.source);
    point.kind == Kind::Bind && (source.starts_with(own) || own.starts_with(source))
}
