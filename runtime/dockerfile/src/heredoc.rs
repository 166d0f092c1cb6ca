//! Heredocs: `<<NAME`, `<<-NAME`, `<<"NAME"`, `3<<NAME`, several in a line.

use crate::{
    error::{Error, Result},
    expand::{Rules, expand_with, expand_words},
    go,
    instruction::{CommandLine, Heredoc, Run},
    variables::Variables,
};

impl Heredoc {
    /// The content as it is meant: `<<-` takes the tabs off the start of each line.
    pub fn text(&self) -> String {
        if !self.is_chomped {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

impl Heredoc {
    /// With the variables expanded, if the name was not quoted. Its tabs are gone.
    ///
    /// # Errors
    /// In dockerd's words, for what is no valid substitution.
    pub fn expanded(&self, escape: char, variables: &Variables) -> Result<Self> {
        let rules = Rules { ignores_quotes: true, ..Rules::new(escape) };
        let content = match self.is_expanded {
            true => expand_with(&self.text(), rules, variables)?,
            false => self.text(),
        };
        Ok(Self { content, is_expanded: false, is_chomped: false, ..self.clone() })
    }
}

impl Run {
    /// The command with its heredocs. One alone is the text for the shell itself, so that every shell
    /// can do it; else the shell reads them.
    ///
    /// dockerd's classic builder runs the line without them, which does nothing and succeeds. berth
    /// does what the Dockerfile says, as BuildKit does.
    ///
    /// # Errors
    /// A script that names another interpreter, for which BuildKit mounts a file.
    pub fn with_heredocs(&self) -> Result<CommandLine> {
        let (Some(first), CommandLine::Shell(Some(line))) = (self.heredocs.first(), &self.command)
        else {
            return Ok(self.command.clone());
        };
        if of_word(line)?.is_some() {
            if first.content.starts_with("#!") {
                return Err(needs_buildkit("a heredoc with an interpreter of its own"));
            }
            return Ok(CommandLine::Shell(Some(first.text())));
        }
        let mut text = line.clone();
        for heredoc in &self.heredocs {
            text.push('\n');
            text.push_str(&heredoc.content);
            text.push_str(&heredoc.name);
        }
        Ok(CommandLine::Shell(Some(text)))
    }
}

/// dockerd's sentence for what its classic builder refuses.
pub(crate) fn needs_buildkit(what: &str) -> Error {
    Error(format!(
        "{what} requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build \
         images with BuildKit enabled"
    ))
}

/// Those that a line announces, in order; their contents are still empty.
///
/// # Errors
/// A name with quotes that do not end.
pub(crate) fn of_line(line: &str) -> Result<Vec<Heredoc>> {
    let rules =
        Rules { keeps_quotes: true, keeps_escapes: true, keeps_unset: true, ..Rules::new('\\') };
    let words = expand_words(line, rules, &Variables::default()).unwrap_or_default();
    words.iter().filter_map(|word| of_word(word).transpose()).collect()
}

/// The heredoc that a word announces, if it does.
///
/// # Errors
/// A name with quotes that do not end.
pub(crate) fn of_word(word: &str) -> Result<Option<Heredoc>> {
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (descriptor, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (is_chomped, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let names = |keeps_quotes| {
        let rules = Rules { keeps_quotes, keeps_unset: true, ..Rules::new('\\') };
        expand_words(rest, rules, &Variables::default())
    };
    let plain = names(false)?;
    let [name] = plain.as_slice() else { return Ok(None) };
    let raw = names(true)?;
    let [raw] = raw.as_slice() else {
        let rest = go::quote(rest);
        return Err(Error(format!("lexing of heredoc {rest} produced inconsistent results")));
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        content: String::new(),
        is_expanded: quotes(name) == quotes(raw),
        is_chomped,
        descriptor: descriptor.parse().unwrap_or_default(),
    }))
}
