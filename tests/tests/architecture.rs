//! The import rules of the README, read from the sources.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Code, without comments and strings' worth of care: a line that starts with `//` says nothing.
fn code(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn only_the_edge_names_messages_of_cri() {
    for path in sources(&root().join("runtime/src")) {
        let edge = path.starts_with(root().join("runtime/src/server")) || path.ends_with("runtime/src/client.rs");
        assert!(edge || !code(&path).contains("berth_proto"), "{} names berth_proto", path.display());
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    for part in ["proto", "shim", "cni", "runtime", "tests"] {
        for path in sources(&root().join(part)) {
            if !path.ends_with("shim/src/sys.rs") && !path.ends_with("tests/architecture.rs") {
                assert!(
                    !code(&path).contains("unsafe {") && !code(&path).contains("allow(unsafe_code)"),
                    "{}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn shim_and_plugin_know_neither_each_other_nor_the_daemon() {
    for (part, foreign) in [
        ("shim", &["berth_cni", "berth_proto", "tokio", "tonic"][..]),
        ("cni", &["berth_shim", "berth_proto", "tonic"]),
        ("proto", &["berth_shim", "berth_cni"]),
    ] {
        for path in sources(&root().join(part)) {
            let code = code(&path);
            let used = foreign
                .iter()
                .find(|name| code.contains(&format!("{name}::")) || code.contains(&format!("use {name}")));
            assert!(used.is_none() || path.ends_with("proto/src/lib.rs"), "{} uses {used:?}", path.display());
        }
    }
    for name in ["layout", "spec", "record", "protocol"] {
        let code = code(&root().join(format!("shim/src/{name}.rs")));
        assert!(
            ["nix::", "libc::", "rustix::"].iter().all(|library| !code.contains(library)),
            "the contract makes no system calls: {name}"
        );
    }
}

/// Highest first: a module may use what is below it.
const LAYERS: [&[&str]; 12] = [
    &["main", "lib"],
    &["server", "client", "debug", "recover", "exporter"],
    &["stats"],
    &["node"],
    &["streaming"],
    &["container"],
    &["sandbox"],
    &["machine"],
    &["image", "network", "shim", "cgroup", "apparmor", "cdi", "handlers", "selinux"],
    &["index", "trash", "events", "telemetry"],
    &["layout"],
    &["config", "id", "error", "clock"],
];

#[test]
fn modules_of_the_daemon_import_downwards_only() {
    let level = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let base = root().join("runtime/src");
    for path in sources(&base) {
        let first = path.strip_prefix(&base).unwrap().components().next().unwrap();
        let module = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let own = level(&module).unwrap_or_else(|| panic!("{module} has no place in the layers"));
        for used in imports(&code(&path)) {
            let below = level(&used).unwrap_or_else(|| panic!("{used} has no place in the layers"));
            assert!(used == module || below > own, "{} uses {used}, which is not below it", path.display());
        }
    }
}

/// Modules named after `crate::`, alone or in braces.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => found.push(word(after)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && c.is_alphanumeric() => {
                            found.push(word(&list[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}
