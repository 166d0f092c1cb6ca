//! The programs that berthd runs, which are installed beside it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use crate::finding::Finding;

const BESIDE: [&str; 3] = ["berth-shim", "berth-bridge", "berth-dns"];

pub(crate) struct Facts {
    directory: PathBuf,
    /// Those that are not there, or that nobody may execute.
    absent: Vec<&'static str>,
}

pub(crate) fn look() -> Facts {
    let own = std::env::current_exe().unwrap_or_default();
    let directory = own.parent().map(PathBuf::from).unwrap_or_default();
    let is_program = |name: &&str| {
        fs::metadata(directory.join(name))
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let absent = BESIDE.into_iter().filter(|name| !is_program(name)).collect();
    Facts { directory, absent }
}

pub(crate) fn judge(Facts { directory, absent }: &Facts) -> Vec<Finding> {
    let shown = directory.display();
    vec![match absent.is_empty() {
        true => Finding::ok("programs", format!("{} in {shown}", BESIDE.join(", "))),
        false => {
            let absent = absent.join(" ");
            let remedy = format!("install -m 0755 {absent} {shown}/");
            Finding::missing("programs", format!("{shown} lacks {absent}"), remedy)
        }
    }]
}
