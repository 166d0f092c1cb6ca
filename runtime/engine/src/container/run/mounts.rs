//! The mounts of a run, and the directories that have to be there before it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_base::layout::Layout;
use berth_node::container::{Mount, MountSource, Tmpfs};
use berth_shim::spec::Propagation;
use http::StatusCode;

use crate::{
    container::{
        mounts::{Kind, MountPoint},
        record::Record,
    },
    http::error::{Failure, Result},
};

/// Makes the directories of binds that are not there, as dockerd does at a start.
///
/// # Errors
/// 500 for what cannot be made, 400 for what is not there and is not to be made.
pub(crate) fn prepare(record: &Record) -> Result<()> {
    let is_missing = |point: &&MountPoint| {
        point.kind == Kind::Bind && fs::symlink_metadata(&point.source).is_err()
    };
    for MountPoint { source, details, .. } in record.mounts.iter().filter(is_missing) {
        if !details.makes_source {
            return Err(Failure::bad_request(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {source}"
            )));
        }
        fs::create_dir_all(source).map_err(|error| {
            let text = format!("error while creating mount source path '{source}': mkdir: {error}");
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
    }
    Ok(())
}

/// All but those in memory.
///
/// # Errors
/// 403 for the daemon's own directories, 501 for what is not there yet.
pub(crate) fn of(layout: &Layout, record: &Record) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for point in record.mounts.iter().filter(|point| point.kind != Kind::Tmpfs) {
        if !record.host_config.privileged {
            guard(layout, point)?;
        }
        mounts.push(mount(point)?);
    }
    Ok(mounts)
}

/// File systems in memory, of both forms. Nobody needs programs or devices in one, unless they say
/// so.
pub(super) fn in_memory(record: &Record) -> Vec<Tmpfs> {
    let tmpfs = |target: &str, options: &mut dyn Iterator<Item = String>| {
        let mut all: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
        all.extend(options);
        Tmpfs { container_path: PathBuf::from(target), options: all }
    };
    let mut all = Vec::new();
    for (target, options) in record.host_config.tmpfs.iter().flatten() {
        all.push(tmpfs(target, &mut options.split(',').map(str::to_owned)));
    }
    for point in record.mounts.iter().filter(|point| point.kind == Kind::Tmpfs) {
        all.push(tmpfs(&point.destination, &mut point.details.options.iter().cloned()));
    }
    all
}

/// Who can write there is root on this machine.
fn guard(layout: &Layout, point: &MountPoint) -> Result<()> {
    let own = [&layout.root, &layout.state]
        .into_iter()
        .any(|own| point.kind == Kind::Bind && Path::new(&point.source).starts_with(own));
    match own {
        true => Err(Failure::new(
            StatusCode::FORBIDDEN,
            format!("{} is the daemon's own, and only for privileged containers", point.source),
        )),
        false => Ok(()),
    }
}

fn mount(point: &MountPoint) -> Result<Mount> {
    let source = match point.kind {
        Kind::Bind => MountSource::Host(PathBuf::from(&point.source)),
        Kind::Image => MountSource::Image {
            image: point.source.clone(),
            sub_path: PathBuf::from(&point.details.sub_path),
            image_ref: String::new(),
        },
        Kind::Volume if !point.details.sub_path.is_empty() => {
            let text = "parts of volumes are not implemented yet";
            return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, text));
        }
        Kind::Volume | Kind::Tmpfs => MountSource::Host(PathBuf::from(&point.source)),
    };
    let propagation = match point.propagation.as_str() {
        "shared" | "rshared" => Propagation::Shared,
        "slave" | "rslave" => Propagation::Slave,
        _ => Propagation::Private,
    };
    Ok(Mount {
        source,
        container_path: PathBuf::from(&point.destination),
        readonly: !point.writable,
        // What is mounted below a read-only directory is read-only as well, as far as nothing is
        // passed on to the host.
        recursive_readonly: !point.writable
            && point.kind == Kind::Bind
            && propagation == Propagation::Private
            && point.details.recursive_readonly != Some(false),
        propagation,
        selinux_relabel: point.details.relabels,
        mapping: None,
        non_recursive: point.details.is_single,
        options: Vec::new(),
    })
}
