//! The licences of all crates in one text, each text once, with the crates that have it.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::Context;

use crate::crates::Crate;

/// How names of files with licences begin.
const NAMES: [&str; 5] = ["license", "licence", "copying", "notice", "unlicense"];

/// Writes the licences of `crates` into `file`.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn write(file: &Path, crates: &[Crate]) -> anyhow::Result<()> {
    let mut text =
        String::from("What berth's programs are linked with, and under which licences.\n\n");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in crates {
        let name = format!("{} {}", one.name, one.version);
        writeln!(text, "{name}: {}", one.license)?;
        for own in files(one)? {
            texts.entry(own).or_default().push(name.clone());
        }
    }
    for (own, names) in texts {
        write!(text, "\n{}\n{}\n\n{}\n", "=".repeat(80), names.join(", "), own.trim_end())?;
    }
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// The texts in the directory of a crate, in the order of their names.
fn files(one: &Crate) -> anyhow::Result<Vec<String>> {
    let during = || format!("read {}", one.directory.display());
    let mut paths: Vec<_> =
        fs::read_dir(&one.directory).with_context(during)?.flatten().map(|it| it.path()).collect();
    paths.sort();
    let is_licence = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        path.is_file() && NAMES.iter().any(|start| name.starts_with(start))
    };
    let own = paths.iter().filter(|path| is_licence(path));
    own.map(|path| Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())).collect()
}
