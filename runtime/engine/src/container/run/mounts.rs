//! The mounts of a run, and what has to be there before it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_base::{blocking::blocking, layout::Layout};
use berth_node::container::{Mount, MountSource};
use berth_shim::{record as disk, spec::Propagation};
use http::StatusCode;

use super::security;
use crate::{
    container::{
        mounts::{Kind, MountPoint, mount_points},
        record::Record,
    },
    http::error::{Failure, Result},
};

/// Makes the directories of binds that are not there, as dockerd does at a start, and writes the
/// seccomp profile that the request carried.
///
/// # Errors
/// 500 for what cannot be made.
pub(crate) fn prepare(layout: &Layout, record: &Record) -> Result<()> {
    for point in mount_points(&record.host_config)? {
        if point.details.makes_source && fs::symlink_metadata(&point.source).is_err() {
            let source = &point.source;
            fs::create_dir_all(source).map_err(|error| {
                let text =
                    format!("error while creating mount source path '{source}': mkdir: {error}");
                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            })?;
        }
    }
    if let Some(profile) = security::Options::of(&record.host_config).own_seccomp() {
        let file = security::seccomp_file(layout, record);
        if serde_json::from_str::<serde::de::IgnoredAny>(profile).is_err() {
            let text = "Decoding seccomp profile failed: it is not JSON";
            return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text));
        }
        blocking(|| disk::write_bytes(&file, profile.as_bytes()))
            .map_err(|error| anyhow::Error::new(error).context("write the seccomp profile"))?;
    }
    Ok(())
}

/// Those of the request.
///
/// # Errors
/// 403 for the daemon's own directories, 501 for what is not there yet.
pub(super) fn of(layout: &Layout, record: &Record) -> Result<Vec<Mount>> {
    let points = mount_points(&record.host_config)?;
    let mut mounts = Vec::new();
    for point in points.iter().filter(|point| point.kind != Kind::Tmpfs) {
        if !record.host_config.privileged {
            guard(layout, point)?;
        }
        mounts.push(mount(point)?);
    }
    Ok(mounts)
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
            sub_path: PathBuf::new(),
            image_ref: String::new(),
        },
        Kind::Volume | Kind::Tmpfs => {
            let text = "named volumes are not implemented yet";
            return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, text));
        }
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
