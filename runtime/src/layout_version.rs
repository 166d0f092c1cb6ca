//! The version of what is on disk: written at the first start, checked at every start.
//!
//! The file holds the number, and from version 2 on who wrote it, as in `2 berthd 0.3.0`. That of
//! version 1 is the number alone, because the first builds compare the whole file.

use std::{cmp::Ordering, path::Path};

use anyhow::{Context, bail};
use berth_base::layout::{Layout, VERSION};
use berth_shim::record::{self, Found};

/// What the file of a directory says.
#[derive(Debug, PartialEq, Eq)]
enum Content<'a> {
    /// Nothing: the directory is new, or of a build from before the file, which is version 1 too.
    Nothing,
    Version {
        number: u32,
        /// Empty if it does not say.
        writer: &'a str,
    },
    /// Every berthd writes a number, so this is none that another one wrote.
    Damaged,
}

/// Refuses directories of another version, and marks new ones.
///
/// # Errors
/// A directory has another version, or its version cannot be read.
pub(crate) fn check(layout: &Layout) -> anyhow::Result<()> {
    check_directory(&layout.root, "--root")?;
    check_directory(&layout.state, "--state")
}

fn check_directory(directory: &Path, option: &str) -> anyhow::Result<()> {
    let path = Layout::version_of(directory);
    let found = record::read_bytes(&path).with_context(|| format!("read {}", path.display()))?;
    let content = match &found {
        Found::Absent => Content::Nothing,
        Found::Damaged => Content::Damaged,
        Found::Record(bytes) => parse(bytes),
    };
    if let Some(why) = refusal(&content) {
        bail!("{} {why}, or choose another {option}", directory.display());
    }
    match content {
        Content::Version { .. } => return Ok(()),
        Content::Nothing => {}
        Content::Damaged => tracing::warn!(
            "{} is damaged and is written again: the directory is taken for one of layout {VERSION}",
            path.display()
        ),
    }
    record::write_bytes(&path, VERSION.to_string().as_bytes())
        .with_context(|| format!("write {}", path.display()))
}

fn parse(bytes: &[u8]) -> Content<'_> {
    let text = std::str::from_utf8(bytes).unwrap_or_default().trim();
    let (number, writer) = text.split_once(' ').unwrap_or((text, ""));
    number.parse().map_or(Content::Damaged, |number| Content::Version { number, writer })
}

/// Why a directory is not used, and what to do about it.
fn refusal(found: &Content<'_>) -> Option<String> {
    let (number, writer) = match found {
        Content::Nothing | Content::Damaged => return None,
        Content::Version { number, writer } => (number, writer),
    };
    let own = format!("this is berthd {}, of layout {VERSION}", env!("CARGO_PKG_VERSION"));
    let writer = if writer.is_empty() { "another berthd" } else { writer };
    match number.cmp(&VERSION) {
        Ordering::Equal => None,
        Ordering::Greater => Some(format!(
            "is of layout {number}, written by {writer}, and {own}: start {writer} again or a \
             later one"
        )),
        // A build that changes the layout brings the older one up to date here, or refuses it.
        Ordering::Less => Some(format!(
            "is of layout {number}, written by {writer}, and {own}, which no longer reads it: \
             remove all pods and images with {writer}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says() {
        for (text, content) in [
            ("", Content::Damaged),
            ("\0", Content::Damaged),
            ("1", Content::Version { number: 1, writer: "" }),
            ("2 berthd 0.3.0\n", Content::Version { number: 2, writer: "berthd 0.3.0" }),
            ("one", Content::Damaged),
            ("-1", Content::Damaged),
        ] {
            assert_eq!(parse(text.as_bytes()), content, "{text:?}");
        }
    }

    #[test]
    fn another_version_is_refused_with_who_wrote_it_and_what_to_do() {
        assert_eq!(refusal(&Content::Nothing), None);
        assert_eq!(refusal(&Content::Version { number: VERSION, writer: "" }), None);
        let newer =
            refusal(&Content::Version { number: VERSION + 1, writer: "berthd 9.0.0" }).unwrap();
        for part in ["written by berthd 9.0.0", "start berthd 9.0.0 again or a later one"] {
            assert!(newer.contains(part), "{newer}");
        }
        let older = refusal(&Content::Version { number: VERSION - 1, writer: "" }).unwrap();
        assert!(older.contains("no longer reads it"), "{older}");
        assert_eq!(refusal(&Content::Damaged), None);
    }
}
