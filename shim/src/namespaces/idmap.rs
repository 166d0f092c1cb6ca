//! A user namespace as mounts use it: for showing the owners of files (mount_setattr(2),
//! MOUNT_ATTR_IDMAP).

use std::fs::File;

use berth_shim::spec::UserNamespace;

use crate::error::{Result, Step};

/// A pod's user namespace.
pub(crate) struct Idmap {
    pub namespace: File,
    /// The ids that its root has on the host.
    pub uid: u32,
    pub gid: u32,
}

impl Idmap {
    pub(crate) fn open(user: &UserNamespace) -> Result<Self> {
        let namespace = File::open(&user.path).step_on("open namespace", &user.path)?;
        Ok(Self { namespace, uid: user.root_uid, gid: user.root_gid })
    }
}
