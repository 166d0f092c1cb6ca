//! Heredocs: `<<NAME`, `<<-NAME`, `<<"NAME"`, `3<<NAME`, several in a line.

use crate::{
    error::Error,
    error::Result,
    expand::{Rules, Variables, expand_words},
    go,
    instruction::Heredoc,
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
