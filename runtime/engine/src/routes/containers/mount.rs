//! A mount, as inspect and list show it.

use serde::Serialize;

use crate::container::{
    mounts::{Kind, MountPoint},
    record::Record,
};

/// With dockerd's fields in its order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Shown {
    r#type: Kind,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    source: String,
    destination: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    driver: String,
    mode: String,
    #[serde(rename = "RW")]
    writable: bool,
    propagation: String,
}

/// All of a container.
pub(super) fn of(record: &Record) -> Vec<Shown> {
    record.mounts.iter().map(shown).collect()
}

fn shown(mount: &MountPoint) -> Shown {
    Shown {
        r#type: mount.kind,
        name: mount.name.clone(),
        source: mount.source.clone(),
        destination: mount.destination.clone(),
        driver: mount.driver.clone(),
        mode: mount.mode.clone(),
        writable: mount.writable,
        propagation: mount.propagation.clone(),
    }
}
