//! The list of all crates, in the JSON of CycloneDX 1.5.

use std::{fs, path::Path, process::Command};

use anyhow::Context;
use serde_json::{Value, json};

use crate::crates::Crate;

/// Writes the list into `file`, with the time of the commit, in seconds since the epoch.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(file: &Path, crates: &[Crate], time: i64) -> anyhow::Result<()> {
    let date = Command::new("date")
        .args(["--utc", "--date", &format!("@{time}"), "+%FT%TZ"])
        .output()
        .context("run date")?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    let text = serde_json::to_string_pretty(&document(crates, &date))? + "\n";
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn document(crates: &[Crate], date: &str) -> Value {
    let components: Vec<Value> = crates.iter().map(component).collect();
    let dependencies: Vec<Value> = crates
        .iter()
        .map(|one| {
            let uses = one.uses.iter().map(|(name, version)| reference(name, version));
            json!({ "ref": reference(&one.name, &one.version), "dependsOn": uses.collect::<Vec<_>>() })
        })
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": date,
            "component": {
                "type": "application",
                "name": "berth",
                "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{ "expression": "Apache-2.0" }],
            },
        },
        "components": components,
        "dependencies": dependencies,
    })
}

fn component(one: &Crate) -> Value {
    // The slash is how crates wrote OR before SPDX's expressions.
    let license = one.license.replace('/', " OR ");
    let reference = reference(&one.name, &one.version);
    let mut component = json!({
        "type": "library",
        "bom-ref": reference,
        "name": one.name,
        "version": one.version,
        "licenses": [{ "expression": license }],
    });
    if let Some(sum) = &one.sha256 {
        component["purl"] = json!(reference);
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

fn reference(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}
