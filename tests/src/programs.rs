//! Where the programs are that are tested.

use std::path::{Path, PathBuf};

/// One of the programs, from the directory BERTH_BIN, or from that of `hack/build`.
///
/// # Panics
/// It has not been built.
pub fn binary(name: &str) -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/berth");
    let path = std::env::var_os("BERTH_BIN").map_or(default, PathBuf::from).join(name);
    assert!(path.exists(), "{} is not there: run hack/build", path.display());
    path
}

/// The directory of the programs built with the feature `faults`: BERTH_FAULTS_BIN, or that of
/// `BERTH_FEATURES=faults hack/build`.
pub fn faulty_programs() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/faults");
    std::env::var_os("BERTH_FAULTS_BIN").map_or(default, PathBuf::from)
}
