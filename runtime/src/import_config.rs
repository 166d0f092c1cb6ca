//! `berthd engine import-config`: what dockerd's daemon.json says is carried over, as far as berth has
//! the same, and of everything else it is said that it is not.

mod daemon_json;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

use self::daemon_json::{Plan, config_text, plan};

/// What a user asks for.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    /// The daemon.json.
    pub file: &'a Path,
    /// Where the files of registries go: the key `registry.config_path`.
    pub registries: &'a Path,
    /// Say what would be done, and do nothing.
    pub is_dry: bool,
    /// Replace files that are there and say something else.
    pub replaces: bool,
}

/// A daemon.json is some lines long.
const MAX_SIZE: u64 = 1 << 20;

/// Writes the files of registries, and returns the report.
///
/// # Errors
/// The file cannot be read, or dockerd would refuse it. Then nothing is written. Or a file of a
/// registry cannot be written.
pub(crate) fn import(request: &Request<'_>) -> anyhow::Result<String> {
    let shown = request.file.display();
    let text = read(request.file).with_context(|| format!("read {shown}"))?;
    let plan = plan(&text).with_context(|| shown.to_string())?;
    let mut report = remarks(&plan);
    let mut kept = 0;
    for (host, text) in &plan.registries {
        let path = request.registries.join(host).join("hosts.toml");
        let outcome = write(request, &path, &format!("{HEAD}{text}"))
            .with_context(|| format!("write {}", path.display()))?;
        report += &format!("{}: {}\n", path.display(), outcome.words(request.is_dry));
        kept += usize::from(outcome == Outcome::Kept);
    }
    let config = config_text(&plan.config);
    report += &format!("\nFor berth's configuration, which is not changed:\n\n{config}");
    if kept > 0 {
        bail!(
            "{report}\nfiles that say something else and were kept: {kept}; --force replaces them"
        );
    }
    Ok(report)
}

const HEAD: &str = "# Written by `berthd engine import-config`.\n";

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_SIZE, "it is larger than 1 MiB");
    Ok(text)
}

fn remarks(plan: &Plan) -> String {
    plan.remarks.iter().map(|(key, remark)| format!("{key}: {remark}\n")).collect()
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    Replaced,
    /// It says the same already.
    Same,
    /// It says something else, and stays.
    Kept,
}

impl Outcome {
    fn words(self, is_dry: bool) -> &'static str {
        match (self, is_dry) {
            (Self::Written, false) => "written",
            (Self::Written, true) => "would be written",
            (Self::Replaced, false) => "replaced; it said something else",
            (Self::Replaced, true) => "would be replaced; it says something else",
            (Self::Same, _) => "is there, and says the same",
            (Self::Kept, _) => "KEPT: it is there, and says something else",
        }
    }
}

fn write(request: &Request<'_>, path: &Path, text: &str) -> io::Result<Outcome> {
    let outcome = match fs::read(path) {
        Ok(there) if there == text.as_bytes() => Outcome::Same,
        Ok(_) if request.replaces => Outcome::Replaced,
        Ok(_) => Outcome::Kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Written,
        Err(error) => return Err(error),
    };
    if !request.is_dry && matches!(outcome, Outcome::Written | Outcome::Replaced) {
        let directory: PathBuf = path.parent().map(Into::into).unwrap_or_default();
        fs::create_dir_all(&directory)?;
        // A pull may read it meanwhile.
        let draft = directory.join(".hosts.toml");
        fs::write(&draft, text)?;
        fs::rename(draft, path)?;
    }
    Ok(outcome)
}
