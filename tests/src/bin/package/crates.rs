//! Which crates are in the programs: those that they are linked with, on this machine's target, and
//! none that is there for tests or builds alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, bail};
use serde::Deserialize;

/// The packages of the programs that are installed.
const PROGRAMS: [&str; 4] = ["berthd", "berth-shim", "berth-cni", "berth-dns"];

/// One crate of them.
#[derive(Clone, Debug)]
pub(crate) struct Crate {
    pub name: String,
    pub version: String,
    /// An expression of SPDX.
    pub license: String,
    /// Where its files are.
    pub directory: PathBuf,
    /// Of its archive in the registry: absent for berth's own.
    pub sha256: Option<String>,
    /// Names and versions of the crates that it is linked with.
    pub uses: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `dev`, `build`, or none.
    kind: Option<String>,
}

/// All crates of the programs, by name and version.
///
/// # Errors
/// cargo fails, or a crate has no licence.
pub(crate) fn shipped() -> anyhow::Result<Vec<Crate>> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &target])
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let linked: BTreeMap<&str, Vec<&str>> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), links(node))).collect();
    let sums = checksums(&fs::read_to_string("Cargo.lock").context("read Cargo.lock")?);
    let mut next: Vec<&str> = packages
        .values()
        .filter(|package| PROGRAMS.contains(&package.name.as_str()))
        .map(|package| package.id.as_str())
        .collect();
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let (package, uses) = (packages[id], &linked[id]);
        next.extend(uses);
        let key = |package: &Package| (package.name.clone(), package.version.clone());
        let license = package.license.clone();
        let made = Crate {
            name: package.name.clone(),
            version: package.version.clone(),
            license: license.with_context(|| format!("{id} has no licence"))?,
            directory: package.manifest_path.parent().map(PathBuf::from).unwrap_or_default(),
            sha256: sums.get(&key(package)).cloned(),
            uses: uses.iter().map(|id| key(packages[id])).collect(),
        };
        found.insert(key(package), made);
    }
    Ok(found.into_values().collect())
}

fn links(node: &Node) -> Vec<&str> {
    let is_linked = |it: &&Dependency| it.dep_kinds.iter().any(|kind| kind.kind.is_none());
    node.deps.iter().filter(is_linked).map(|it| it.pkg.as_str()).collect()
}

/// The checksums of a Cargo.lock, by name and version. Its tables have one key in a line.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for table in lock.split("[[package]]") {
        let value = |key: &str| {
            let line = table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
            line.map(|line| line.trim_end_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(sum)) =
            (value("name"), value("version"), value("checksum"))
        {
            found.insert((name, version), sum);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_of_crates_from_the_registry() {
        let lock = "version = 4\n[[package]]\nname = \"own\"\nversion = \"1.0.0\"\n\n\
                    [[package]]\nname = \"theirs\"\nversion = \"2.0.0\"\nchecksum = \"ab\"\n";
        let found = checksums(lock);
        let theirs = ("theirs".to_owned(), "2.0.0".to_owned());
        assert_eq!(found, BTreeMap::from([(theirs, "ab".to_owned())]));
    }
}
