//! The import rules of the README, read from the sources.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => {
                found.push(path)
            }
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

/// The crates of the daemon, each of which cargo lets use only those before it.
const DAEMON: [&str; 9] = [
    "runtime/base/src",
    "runtime/dockerfile/src",
    "runtime/image/src",
    "runtime/node/src",
    "runtime/streaming/src",
    "runtime/cri/src",
    "runtime/engine/src",
    "runtime/check/src",
    "runtime/src",
];

#[test]
fn only_the_edge_names_messages_of_cri() {
    for part in DAEMON {
        for path in sources(&root().join(part)) {
            // `client` is the command line's side of the edge.
            let edge = part == "runtime/cri/src"
                || ["runtime/src/client.rs"].iter().any(|known| path.ends_with(known));
            let named =
                ["berth_proto::", "tonic::"].iter().find(|name| code(&path).contains(*name));
            assert!(edge || named.is_none(), "{} names {named:?}", path.display());
        }
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    for part in ["proto", "shim", "cni", "runtime", "tests"] {
        for path in sources(&root().join(part)) {
            if !path.ends_with("shim/src/sys.rs") && !path.ends_with("tests/architecture.rs") {
                assert!(
                    !code(&path).contains("unsafe {")
                        && !code(&path).contains("allow(unsafe_code)"),
                    "{}",
                    path.display()
                );
            }
        }
    }
}

/// Macros of nix that stand for unsafe code. It is nix's own, and checked by types; still, no file is
/// to have more of it than those that are named here, with their reason.
#[test]
fn macros_of_unsafe_code_are_where_there_is_nothing_else() {
    // Whether a client has read what was sent: neither std, nix, rustix nor socket2 asks a socket
    // for that, and unix_diag(7) is a module that machines may lack.
    let known = ["runtime/engine/src/http/upgrade.rs"];
    let macros = ["sockopt_impl!", "ioctl_none", "ioctl_read", "ioctl_write", "ioctl_readwrite"];
    for part in ["proto", "shim", "cni", "runtime", "tests"] {
        for path in sources(&root().join(part)) {
            let is_known = known.iter().any(|known| path.ends_with(known));
            let used = macros.iter().find(|name| code(&path).contains(&format!("{name}(")));
            assert!(is_known || used.is_none(), "{}: {used:?}", path.display());
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
            let used = foreign.iter().find(|name| {
                code.contains(&format!("{name}::")) || code.contains(&format!("use {name}"))
            });
            assert!(
                used.is_none() || path.ends_with("proto/src/lib.rs"),
                "{} uses {used:?}",
                path.display()
            );
        }
    }
    for name in ["layout", "spec", "record", "protocol"] {
        // Modes of files are std's business.
        let code = code(&root().join(format!("shim/src/{name}.rs"))).replace("os::unix::", "");
        assert!(
            ["nix::", "libc::", "rustix::"].iter().all(|library| !code.contains(library)),
            "the contract makes no system calls: {name}"
        );
    }
}

/// The modules of the crate in which pods and containers are, highest first: each may use what is
/// below it.
const LAYERS: [&[&str]; 7] = [
    &["recover", "stats"],
    &["node"],
    &["container"],
    &["events"],
    &["sandbox"],
    &["host"],
    &["network", "shim", "cgroup", "cdi", "handlers", "mount_points", "security"],
];

#[test]
fn modules_of_the_node_import_downwards_only() {
    let level = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let base = root().join("runtime/node/src");
    for path in sources(&base).into_iter().filter(|path| !path.ends_with("lib.rs")) {
        let first = path.strip_prefix(&base).unwrap().components().next().unwrap();
        let module = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let own = level(&module).unwrap_or_else(|| panic!("{module} has no place in the layers"));
        for used in paths(&code(&path), "crate").iter().filter_map(|path| path.segments.first()) {
            let below = level(used).unwrap_or_else(|| panic!("{used} has no place in the layers"));
            assert!(
                *used == module || below > own,
                "{} uses {used}, which is not below it",
                path.display()
            );
        }
    }
}

/// One path of a `use` or of an expression, without its first word.
#[derive(Clone, Debug, Default)]
struct Import {
    segments: Vec<String>,
    /// What it is called where it is imported.
    alias: Option<String>,
}

impl Import {
    fn name(&self) -> Option<&String> {
        self.alias.as_ref().or(self.segments.last())
    }
}

/// All paths that begin with this word, those in braces spread out.
fn paths(code: &str, first: &str) -> Vec<Import> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&format!("{first}::")) {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            spread(&code[at + first.len() + 2..], &Import::default(), &mut found);
        }
    }
    found
}

/// Reads a tree of paths from the beginning of `text`; returns what follows it.
fn spread<'a>(text: &'a str, before: &Import, found: &mut Vec<Import>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = spread(rest, before, found).trim_start();
            rest = after.strip_prefix(',').unwrap_or(after);
            assert!(rest.starts_with('}') || rest.len() < after.len(), "not a tree: {after:.60}");
        }
    }
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let mut rest = &text[word.len()..];
    let mut import = before.clone();
    if word != "self" {
        import.segments.push(word);
    }
    if let Some(deeper) = rest.strip_prefix("::") {
        // A turbofish ends a path.
        if !deeper.starts_with('<') && !deeper.starts_with('*') {
            return spread(deeper, &import, found);
        }
        rest = deeper.trim_start_matches('*');
    } else if let Some(alias) = rest.strip_prefix(" as ") {
        let alias: String =
            alias.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        rest = &rest[4 + alias.len()..];
        import.alias = Some(alias);
    }
    found.push(import);
    rest
}

/// One crate's files by the path of their module.
struct Modules {
    files: BTreeMap<Vec<String>, PathBuf>,
    codes: BTreeMap<Vec<String>, String>,
    /// What a module passes on of its children: module and name, and where it is at home.
    passed_on: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl Modules {
    fn of(base: &Path) -> Self {
        let mut files = BTreeMap::new();
        for path in sources(base) {
            let relative = path.strip_prefix(base).unwrap().with_extension("");
            let words = relative.iter().map(|part| part.to_str().unwrap().to_owned());
            let mut module: Vec<String> = words.collect();
            if matches!(module.last().unwrap().as_str(), "mod" | "lib" | "main") {
                module.pop();
            }
            files.entry(module).or_insert(path);
        }
        // What only tests import is a matter of theirs.
        let shipped = |path: &PathBuf| code(path).split("#[cfg(test)]").next().unwrap().to_owned();
        let codes = files.iter().map(|(module, path)| (module.clone(), shipped(path))).collect();
        let mut modules = Self { files, codes, passed_on: BTreeMap::new() };
        for module in modules.files.keys().cloned().collect::<Vec<_>>() {
            for line in statements(&modules.codes[&module], "use ") {
                let public = line.starts_with("pub");
                for (home, import) in modules.of_children(&module, line) {
                    if let (true, Some(name)) = (public, import.name()) {
                        modules.passed_on.insert((module.clone(), name.clone()), home);
                    }
                }
            }
        }
        modules
    }

    /// The imports of a statement that name a child of `module`, and that child.
    fn of_children(&self, module: &[String], statement: &str) -> Vec<(Vec<String>, Import)> {
        let tree = statement.split_once("use ").unwrap().1;
        let tree = tree.strip_prefix("self::").unwrap_or(tree);
        let mut found = Vec::new();
        spread(tree, &Import::default(), &mut found);
        let homed = found.into_iter().map(|import| {
            let home = self.longest(&[module, &import.segments[..]].concat());
            (home, import)
        });
        homed.filter(|(home, _)| home.len() > module.len()).collect()
    }

    /// The deepest module of a path.
    fn longest(&self, path: &[String]) -> Vec<String> {
        let mut lengths = (0..=path.len()).rev();
        let length = lengths.find(|length| self.files.contains_key(&path[..*length])).unwrap();
        path[..length].to_vec()
    }

    /// The module where what a path names is at home.
    fn home(&self, path: &[String]) -> Vec<String> {
        let module = self.longest(path);
        let name = path.get(module.len()).map(|name| (module.clone(), name.clone()));
        match name.and_then(|name| self.passed_on.get(&name)) {
            Some(child) => self.home(&[child.as_slice(), &path[module.len()..]].concat()),
            None => module,
        }
    }

    /// The modules that a module imports from.
    fn imports(&self, module: &[String]) -> BTreeSet<Vec<String>> {
        let code = &self.codes[module];
        let mut homes: BTreeSet<Vec<String>> = BTreeSet::new();
        for import in paths(code, "crate") {
            homes.insert(self.home(&import.segments));
        }
        for import in paths(code, "super") {
            let up = import.segments.iter().take_while(|word| *word == "super").count();
            let above = &module[..module.len().saturating_sub(up + 1)];
            homes.insert(self.home(&[above, &import.segments[up..]].concat()));
        }
        for statement in statements(code, "use ") {
            if !statement.starts_with("pub") {
                let children = self.of_children(module, statement);
                homes.extend(
                    children
                        .iter()
                        .map(|(_, import)| self.home(&[module, &import.segments[..]].concat())),
                );
            }
        }
        homes.remove(module);
        homes
    }

    /// The way from `to` back to it, if there is one through what it imports.
    fn circle(&self, module: &Vec<String>) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
        let mut next = vec![module.clone()];
        while let Some(at) = next.pop() {
            for import in self.imports(&at) {
                if import == *module {
                    let mut way = vec![at.clone()];
                    while let Some(before) = came_from.get(way.last().unwrap()) {
                        way.push(before.clone());
                    }
                    way.reverse();
                    way.push(module.clone());
                    return Some(way.iter().map(|module| module.join("::")).collect());
                }
                if !came_from.contains_key(&import) {
                    came_from.insert(import.clone(), at.clone());
                    next.push(import);
                }
            }
        }
        None
    }
}

/// The statements with this keyword, `pub` and all, up to their semicolon.
fn statements<'a>(code: &'a str, keyword: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for line in code.split_inclusive(';') {
        let Some(at) = line.rfind(keyword) else { continue };
        let begins = line[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let before = line[begins..at].trim();
        if before.is_empty() || before.starts_with("pub") {
            found.push(line[begins..].trim());
        }
    }
    found
}

#[test]
fn no_two_files_import_each_other() {
    let mut circles = Vec::new();
    for part in DAEMON.into_iter().chain(["shim/src", "cni/src"]) {
        let modules = Modules::of(&root().join(part));
        for module in modules.files.keys() {
            if let Some(way) = modules.circle(module) {
                circles.push(format!("{part}: {}", way.join(" -> ")));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}
