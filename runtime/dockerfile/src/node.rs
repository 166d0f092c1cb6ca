//! One instruction, taken apart as far as that is the same for all of them: name, flags, arguments.

use serde_json::Value;

use crate::{
    error::{Error, Result},
    instruction::{Heredoc, Line},
    words,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    /// As written.
    pub name: String,
    pub flags: Vec<String>,
    pub arguments: Arguments,
    pub heredocs: Vec<Heredoc>,
    pub line: Line,
}

#[derive(Clone, Debug)]
pub(crate) enum Arguments {
    Words(Vec<String>),
    /// A JSON list. What stands before it, as `CMD` of a health check, is its first word.
    Json(Vec<String>),
    /// `KEY=VALUE`, or `KEY VALUE`.
    Pairs(Vec<(String, String)>),
    /// `ONBUILD`.
    Instruction(Box<Node>),
}

impl Default for Arguments {
    fn default() -> Self {
        Self::Words(Vec::new())
    }
}

impl Node {
    /// Takes a line apart. A name that no instruction has is no error yet.
    ///
    /// # Errors
    /// In dockerd's words, if the arguments do not have the form that the instruction wants.
    pub(crate) fn parse(line: &str, escape: char) -> Result<Self> {
        Self::parse_at(line, escape, 0)
    }

    fn parse_at(line: &str, escape: char, depth: usize) -> Result<Self> {
        let (name, behind) = words::first_word(line.trim());
        let (flags, rest) = words::split_flags(behind.unwrap_or_default(), escape);
        let rest = rest.trim();
        let arguments = match name.to_ascii_lowercase().as_str() {
            _ if rest.is_empty() => Arguments::default(),
            "add" | "copy" | "volume" => {
                json(rest)?.unwrap_or_else(|| Arguments::Words(words::at_spaces(rest)))
            }
            "cmd" | "entrypoint" | "run" | "shell" => {
                json(rest)?.unwrap_or_else(|| Arguments::Words(vec![rest.to_owned()]))
            }
            "env" | "label" => pairs(rest, &name.to_ascii_uppercase(), escape)?,
            "arg" => Arguments::Words(words::with_quotes(rest, escape)),
            "expose" | "from" => Arguments::Words(words::at_spaces(rest)),
            "maintainer" | "stopsignal" | "user" | "workdir" => {
                Arguments::Words(vec![rest.to_owned()])
            }
            "healthcheck" => health(rest)?,
            // What follows a second one does not matter: it is refused.
            "onbuild" if depth == 0 => {
                Arguments::Instruction(Box::new(Self::parse_at(rest, escape, 1)?))
            }
            _ => Arguments::default(),
        };
        Ok(Self { name: name.to_owned(), flags, arguments, ..Self::default() })
    }

    pub(crate) fn may_have_heredocs(&self) -> bool {
        let node = match &self.arguments {
            Arguments::Instruction(node) if self.name.eq_ignore_ascii_case("onbuild") => node,
            _ => self,
        };
        let is_one_of = ["add", "copy", "run"].iter().any(|n| node.name.eq_ignore_ascii_case(n));
        is_one_of && !matches!(node.arguments, Arguments::Json(_))
    }
}

/// `None` if it is no JSON list, which is no error: `[` is a command as well.
fn json(rest: &str) -> Result<Option<Arguments>> {
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(list) = serde_json::from_str::<Vec<Value>>(rest) else { return Ok(None) };
    let words = list.into_iter().map(|word| match word {
        Value::String(word) => Ok(word),
        _ => Err(Error::new(
            "when using JSON array syntax, arrays must be comprised of strings only",
        )),
    });
    Ok(Some(Arguments::Json(words.collect::<Result<_>>()?)))
}

/// The old form, `KEY VALUE`, is one whose first word has no `=`.
fn pairs(rest: &str, name: &str, escape: char) -> Result<Arguments> {
    let words = words::with_quotes(rest, escape);
    if words.first().is_some_and(|word| !word.contains('=')) {
        return match words::first_word(rest) {
            (key, Some(value)) => Ok(Arguments::Pairs(vec![(key.to_owned(), value.to_owned())])),
            (_, None) => Err(Error(format!("{name} must have two arguments"))),
        };
    }
    let pairs = words.iter().map(|word| match word.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            let word = crate::go::quote(word);
            let form = "Must be of the form: name=value";
            Err(Error(format!("Syntax error - can't find = in {word}. {form}")))
        }
    });
    Ok(Arguments::Pairs(pairs.collect::<Result<_>>()?))
}

/// A type, and a command.
fn health(rest: &str) -> Result<Arguments> {
    let (kind, command) = match rest.split_once(char::is_whitespace) {
        Some((kind, command)) => (kind, command.trim_start()),
        None => (rest, ""),
    };
    let kind = kind.to_owned();
    Ok(match json(command)? {
        Some(Arguments::Json(words)) => {
            Arguments::Json(std::iter::once(kind).chain(words).collect())
        }
        _ if command.is_empty() => Arguments::Words(vec![kind]),
        _ => Arguments::Words(vec![kind, command.to_owned()]),
    })
}
