//! `/containers/{name}/archive`, which is `docker cp`.

use std::{path::Path, sync::Arc};

use berth_base::blocking::spawn_blocking;
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;

use super::Call;
use crate::{
    archive::{ContainerFiles, ExtractOptions},
    container::{
        files::{Files, Scope},
        mounts::Kind,
        record::Record,
        users,
    },
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        transfer,
    },
};

/// What the client is told of the path: JSON in base64.
const PATH_STAT: &str = "x-docker-container-path-stat";

/// A path of the container as a tar, or, to a HEAD, what it is.
pub(in crate::routes) async fn archive(call: &Call, name: &str) -> Result<Answer> {
    let path = path(call)?;
    let container = call.engine.containers.find(name)?;
    let files = Arc::new(Files::open(&call.engine, &container, Scope::Mounts).await?);
    let stat = {
        let (files, path, name) = (files.clone(), path.clone(), name.to_owned());
        spawn_blocking(move || ContainerFiles::new(files.root(), &name).stat(&path)).await
    };
    let stat = stat.map_err(anyhow::Error::from)??.header();
    let mut answer = match *call.request.method() == Method::HEAD {
        true => body::empty(StatusCode::OK),
        false => {
            call.engine.publish(&container, "archive-path", json!({}));
            let name = name.to_owned();
            let tar = transfer::send(move |to| {
                Ok(ContainerFiles::new(files.root(), &name).pack(&path, to)?)
            });
            body::streaming("application/x-tar", tar)
        }
    };
    let stat = HeaderValue::from_str(&stat).map_err(anyhow::Error::from)?;
    answer.headers_mut().insert(PATH_STAT, stat);
    Ok(answer)
}

fn path(call: &Call) -> Result<String> {
    match call.query.get("path") {
        "" => Err(Failure::bad_request("bad parameter: pathcannot be empty")),
        path => Ok(path.to_owned()),
    }
}

/// A tar, which may be compressed, into a directory of the container.
pub(in crate::routes) async fn extract(call: Call, name: &str) -> Result<Answer> {
    let path = path(&call)?;
    let keeps_directories = call.query.flag("noOverwriteDirNonDir");
    let has_owner = call.query.flag("copyUIDGID");
    let Call { engine, request, .. } = call;
    let container = engine.containers.find(name)?;
    let files = Files::open(&engine, &container, Scope::Mounts).await?;
    let record = container.record();
    let called = name.to_owned();
    let extracted = transfer::receive(request.into_body(), move |from| -> Result<()> {
        let inside = ContainerFiles::new(files.root(), &called);
        check_writable(&record, &inside.extraction_point(&path)?)?;
        let user = record.config.user.as_str();
        let owner = match has_owner && !user.is_empty() {
            true => Some(users::find(files.root(), user)?),
            false => None,
        };
        let tar = berth_image::decompressed(from)?;
        Ok(inside.extract(&path, tar, ExtractOptions { keeps_directories, owner })?)
    });
    extracted.await??;
    engine.publish(&container, "extract-to-dir", json!({}));
    Ok(body::empty(StatusCode::OK))
}

/// Refuses a directory that is read-only for the container.
fn check_writable(record: &Record, directory: &Path) -> Result<()> {
    match mount_at(record, directory) {
        Some(false) => Err(Failure::bad_request("mounted volume is marked read-only")),
        None if record.host_config.readonly_rootfs => {
            Err(Failure::bad_request("container rootfs is marked read-only"))
        }
        Some(true) | None => Ok(()),
    }
}

/// Whether the mount that has `directory` is writable; `None` if it is of the root.
fn mount_at(record: &Record, directory: &Path) -> Option<bool> {
    let mounts = record
        .mounts
        .iter()
        .map(|point| (point.destination.as_str(), point.writable && point.kind != Kind::Image));
    let memory = record.host_config.tmpfs.iter().flatten().map(|(path, _)| (path.as_str(), true));
    let all = mounts.chain(memory).map(|(path, writable)| (Path::new(path), writable));
    let at = all.filter(|(path, _)| directory.starts_with(path));
    // The innermost one covers the others.
    at.max_by_key(|(path, _)| path.components().count()).map(|(_, writable)| writable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::host_config::HostConfig, container::mounts::mount_points};

    #[test]
    fn the_innermost_mount_decides() {
        let binds = ["/a:/data", "/b:/data/ro:ro", "/c:/data/ro/rw"].map(str::to_owned);
        let host = HostConfig {
            binds: Some(binds.to_vec()),
            tmpfs: Some([("/tmp".to_owned(), String::new())].into()),
            ..HostConfig::default()
        };
        let mut record = Record::lost("id", 0, None);
        record.mounts = mount_points(&host).unwrap();
        record.host_config = host;
        for (directory, expected) in [
            ("/", None),
            ("/database", None),
            ("/data", Some(true)),
            ("/data/ro/x", Some(false)),
            ("/data/ro/rw", Some(true)),
            ("/tmp/x", Some(true)),
        ] {
            assert_eq!(mount_at(&record, Path::new(directory)), expected, "{directory}");
        }
    }
}
