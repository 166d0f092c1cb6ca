//! From the bytes of a file to its instructions, each still text: directives, comments, continued
//! lines and heredocs are read here.

use crate::{
    error::{Error, Result},
    heredoc,
    instruction::{Heredoc, Line},
    node::Node,
};

/// The most that a file may have, in bytes. dockerd reads as much as there is.
pub const MAX_FILE: usize = 1 << 20;
/// The most instructions that a file may have. An image cannot have this many layers, but `ENV` makes
/// none.
const MAX_INSTRUCTIONS: usize = 10_000;
/// The most that a line may have, with its end, as in dockerd.
const MAX_LINE: usize = 64 << 10;

/// A file, instruction by instruction.
#[derive(Debug)]
pub(crate) struct Lines {
    pub escape: char,
    pub nodes: Vec<Node>,
    /// The instructions that have an empty line where they are continued.
    pub empty_continuations: Vec<String>,
}

/// Reads lines one by one, and knows the number of the last.
struct Reader<'a> {
    rest: &'a str,
    number: usize,
    escape: char,
    directives: Directives,
    is_too_long: bool,
}

/// Which `# NAME=VALUE` lines there were. They end with the first line that is none.
#[derive(Default)]
struct Directives {
    is_over: bool,
    seen: Vec<String>,
}

impl Lines {
    /// Reads a whole file.
    ///
    /// # Errors
    /// In dockerd's words: without instructions, with a directive twice, an instruction that has no
    /// form, a heredoc without an end, a line that is too long. Too large, in our own.
    pub(crate) fn read(file: &[u8]) -> Result<Self> {
        if file.len() > MAX_FILE {
            return Err(Error(format!("the Dockerfile is larger than {MAX_FILE} bytes")));
        }
        let text = text(file);
        let mut reader = Reader {
            rest: text.strip_prefix('\u{feff}').unwrap_or(&text),
            number: 0,
            escape: '\\',
            directives: Directives::default(),
            is_too_long: false,
        };
        let mut nodes = Vec::new();
        let mut empty_continuations = Vec::new();
        while let Some(line) = reader.next() {
            let first = reader.number;
            let Some((text, has_empty)) = reader.logical_line(line)? else { continue };
            if has_empty {
                empty_continuations.push(text.clone());
            }
            let mut node = Node::parse(&text, reader.escape)?;
            if node.may_have_heredocs() && text.contains("<<") {
                for heredoc in heredoc::of_line(&text)? {
                    node.heredocs.push(reader.content(heredoc)?);
                }
            }
            node.line = Line { first, last: reader.number, text };
            nodes.push(node);
            if nodes.len() > MAX_INSTRUCTIONS {
                let message =
                    format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions");
                return Err(Error(message));
            }
        }
        if nodes.is_empty() {
            return Err(Error::new("file with no instructions"));
        }
        if reader.is_too_long {
            let limit = MAX_LINE - 1;
            return Err(Error(format!("dockerfile line greater than max allowed size of {limit}")));
        }
        Ok(Self { escape: reader.escape, nodes, empty_continuations })
    }
}

/// Go writes each byte that is not UTF-8 as U+FFFD when it makes JSON of it, which is where every
/// part of a Dockerfile ends up.
fn text(file: &[u8]) -> String {
    let mut text = String::with_capacity(file.len());
    for chunk in file.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
    text
}

impl<'a> Reader<'a> {
    /// The next line with its end. `None` at the end of the file, and where a line is too long.
    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() || self.is_too_long {
            return None;
        }
        let length = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(length);
        let limit = MAX_LINE - usize::from(!line.ends_with('\n'));
        if length > limit {
            self.is_too_long = true;
            return None;
        }
        self.rest = rest;
        self.number += 1;
        Some(line)
    }

    /// The instruction that begins with `line`, and whether it was continued by an empty line.
    /// `None` for empty lines, comments and directives.
    fn logical_line(&mut self, line: &str) -> Result<Option<(String, bool)>> {
        let line = trim_end(line).trim_start();
        self.directive(line)?;
        let line = if is_comment(line) { "" } else { line };
        let (part, mut is_continued) = continuation(line, self.escape);
        if !is_continued && part.is_empty() {
            return Ok(None);
        }
        let mut text = part.to_owned();
        let mut has_empty = false;
        while is_continued {
            let Some(line) = self.next() else { break };
            let line = trim_end(line);
            self.directive(line)?;
            if is_comment(line) {
                continue;
            }
            if line.trim_start().is_empty() {
                has_empty = true;
                continue;
            }
            let part;
            (part, is_continued) = continuation(line, self.escape);
            text.push_str(part);
        }
        Ok(Some((text, has_empty)))
    }

    fn directive(&mut self, line: &str) -> Result<()> {
        let Some((name, value)) = self.directives.read(line)? else { return Ok(()) };
        if name == "escape" {
            self.escape = match value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    return Err(Error(message));
                }
            };
        }
        Ok(())
    }

    /// Reads the lines of a heredoc up to its name.
    fn content(&mut self, mut heredoc: Heredoc) -> Result<Heredoc> {
        while let Some(line) = self.next() {
            let mut end = trim_end(line);
            if heredoc.is_chomped {
                end = end.trim_start_matches('\t');
            }
            if end == heredoc.name {
                return Ok(heredoc);
            }
            heredoc.content.push_str(line);
        }
        Err(Error::new("unterminated heredoc"))
    }
}

impl Directives {
    /// The name in lower case, and the value, if `line` is a directive.
    fn read<'l>(&mut self, line: &'l str) -> Result<Option<(String, &'l str)>> {
        if self.is_over {
            return Ok(None);
        }
        let Some((name, value)) = directive(line) else {
            self.is_over = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(Error(format!("only one {name} parser directive can be used")));
        }
        self.seen.push(name.clone());
        Ok(Some((name, value)))
    }
}

fn directive(line: &str) -> Option<(String, &str)> {
    let space = |c: char| c.is_ascii_whitespace();
    let (name, value) = line.strip_prefix('#')?.split_once('=')?;
    let name = name.trim_matches(space).to_ascii_lowercase();
    let value = value.trim_matches(space);
    let is_known = matches!(name.as_str(), "syntax" | "escape" | "check");
    (is_known && !value.is_empty()).then_some((name, value))
}

fn trim_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line without the escape character that continues it, and whether there was one. An escaped
/// one continues nothing.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(part) if !part.ends_with(escape) => (part, true),
        _ => (line, false),
    }
}
