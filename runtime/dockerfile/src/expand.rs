//! Expands variables and takes quotes off, much as a shell does: `$x`, `${x}`, `${x:-y}`, `${x:+y}`,
//! `${x:?y}`, each without the colon too, `${x#y}`, `${x##y}`, `${x%y}`, `${x%%y}`, `${x/y/z}` and
//! `${x//y/z}`.

use crate::{
    error::{Error, Result},
    shell_pattern::{remove_prefix, remove_suffix, replace},
    variables::Variables,
};

/// How deep substitutions may stand in each other. Without a limit, a hostile line of a megabyte
/// would overflow the stack.
const MAX_DEPTH: usize = 100;
/// The most that one word may become, in bytes: `ENV a=$a$a` doubles with every line.
const MAX_EXPANDED: usize = 1 << 20;

/// How a text is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub escape: char,
    /// Quotes stay in the result.
    pub keeps_quotes: bool,
    /// Escape characters stay in the result.
    pub keeps_escapes: bool,
    /// Variables that are not set stay as they are.
    pub keeps_unset: bool,
    /// Quotes mean nothing, as in a heredoc.
    pub ignores_quotes: bool,
}

impl Rules {
    pub(crate) fn new(escape: char) -> Self {
        Self {
            escape,
            keeps_quotes: false,
            keeps_escapes: false,
            keeps_unset: false,
            ignores_quotes: false,
        }
    }
}

/// Expands one word; spaces in it stay.
///
/// # Errors
/// In dockerd's words, what is no valid substitution, or unset and must not be.
pub fn expand(word: &str, escape: char, variables: &Variables) -> Result<String> {
    expand_with(word, Rules::new(escape), variables)
}

/// As [`expand`], with rules of its own.
///
/// # Errors
/// As [`expand`].
pub(crate) fn expand_with(word: &str, rules: Rules, variables: &Variables) -> Result<String> {
    Ok(Expander::run(word, rules, variables)?.0)
}

/// Expands a text, and splits it at spaces that are not quoted.
///
/// # Errors
/// As [`expand`].
pub(crate) fn expand_words(text: &str, rules: Rules, variables: &Variables) -> Result<Vec<String>> {
    Ok(Expander::run(text, rules, variables)?.1)
}

/// Where it reads, and what it has of the word that is being read.
struct Expander<'a> {
    text: Vec<char>,
    at: usize,
    rules: Rules,
    variables: &'a Variables,
    /// The word so far. A substitution's own text begins it anew, so `80${x:-81}` loses its `80`
    /// where words are asked for: dockerd does the same.
    word: String,
    depth: usize,
}

/// The words found, of one level of substitutions.
#[derive(Default)]
struct Words {
    found: Vec<String>,
    is_inside: bool,
}

impl Expander<'_> {
    fn run(text: &str, rules: Rules, variables: &Variables) -> Result<(String, Vec<String>)> {
        let chars = text.chars().collect();
        let word = String::new();
        let mut expander = Expander { text: chars, at: 0, rules, variables, word, depth: 0 };
        expander.until(None).map_err(|Error(why)| {
            Error(format!("failed to process {}: {why}", crate::go::quote(text)))
        })
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Reads up to `stop`, or to the end.
    fn until(&mut self, stop: Option<char>) -> Result<(String, Vec<String>)> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::new("syntax error: substitutions are nested too deep"));
        }
        self.word.clear();
        let mut result = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                self.depth -= 1;
                return Ok((result, self.end(words)));
            }
            if result.len() > MAX_EXPANDED {
                return Err(Error(format!("a word grows over {MAX_EXPANDED} bytes")));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| self.add(&mut words, c));
                    result.push_str(&value);
                }
                '\'' | '"' if self.rules.ignores_quotes => self.plain(&mut words, &mut result),
                '\'' | '"' | '<' => {
                    let text = match c {
                        '\'' => self.single_quoted()?,
                        '"' => self.double_quoted()?,
                        _ => self.heredoc_or_less(),
                    };
                    self.word.push_str(&text);
                    words.is_inside = true;
                    result.push_str(&text);
                }
                _ => self.plain(&mut words, &mut result),
            }
        }
        match stop {
            Some(stop) => {
                Err(Error(format!("unexpected end of statement while looking for matching {stop}")))
            }
            None => {
                self.depth -= 1;
                Ok((result, self.end(words)))
            }
        }
    }

    /// A character without a meaning of its own, or an escaped one.
    fn plain(&mut self, words: &mut Words, result: &mut String) {
        let Some(mut c) = self.next() else { return };
        if c == self.rules.escape {
            if self.rules.keeps_escapes {
                self.add_raw(words, c);
                result.push(c);
            }
            // At the end there is nothing to escape.
            let Some(escaped) = self.next() else { return };
            c = escaped;
            self.add_raw(words, c);
        } else {
            self.add(words, c);
        }
        result.push(c);
    }

    fn add(&mut self, words: &mut Words, c: char) {
        if !c.is_whitespace() {
            self.add_raw(words, c);
        } else if words.is_inside && !self.word.is_empty() {
            words.found.push(std::mem::take(&mut self.word));
            words.is_inside = false;
        }
    }

    fn add_raw(&mut self, words: &mut Words, c: char) {
        self.word.push(c);
        words.is_inside = true;
    }

    fn end(&mut self, mut words: Words) -> Vec<String> {
        if !self.word.is_empty() {
            words.found.push(std::mem::take(&mut self.word));
        }
        words.found
    }

    /// Nothing can be escaped in single quotes, not even one of them.
    fn single_quoted(&mut self) -> Result<String> {
        const UNENDED: &str = "unexpected end of statement while looking for matching single-quote";
        let mut result = String::new();
        let quote = self.next();
        result.extend(quote.filter(|_| self.rules.keeps_quotes));
        loop {
            match self.next().ok_or_else(|| Error::new(UNENDED))? {
                '\'' => break,
                c => result.push(c),
            }
        }
        result.extend(quote.filter(|_| self.rules.keeps_quotes));
        Ok(result)
    }

    fn double_quoted(&mut self) -> Result<String> {
        const UNENDED: &str = "unexpected end of statement while looking for matching double-quote";
        let mut result = String::new();
        let quote = self.next();
        result.extend(quote.filter(|_| self.rules.keeps_quotes));
        loop {
            match self.peek().ok_or_else(|| Error::new(UNENDED))? {
                '"' => break,
                '$' => result.push_str(&self.dollar()?),
                c => {
                    self.at += 1;
                    self.escaped_in_quotes(c, &mut result);
                }
            }
            if result.len() > MAX_EXPANDED {
                return Err(Error(format!("a word grows over {MAX_EXPANDED} bytes")));
            }
        }
        self.at += 1;
        result.extend(quote.filter(|_| self.rules.keeps_quotes));
        Ok(result)
    }

    /// Only `"`, `$` and the escape character itself are escaped in double quotes. Before anything
    /// else it stands for itself.
    fn escaped_in_quotes(&mut self, c: char, result: &mut String) {
        if c != self.rules.escape {
            result.push(c);
            return;
        }
        if self.rules.keeps_escapes {
            result.push(c);
        }
        match self.peek() {
            None => {}
            Some(next) if next == '"' || next == '$' || next == self.rules.escape => {
                self.at += 1;
                result.push(next);
            }
            Some(_) => result.push(c),
        }
    }

    /// `<<` and the spaces behind it belong to one word with the name that follows.
    fn heredoc_or_less(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.at += 1;
        let mut result = "<<".to_owned();
        while let Some(space) = self.peek().filter(|c| matches!(c, '\t' | '\r' | ' ')) {
            result.push(space);
            self.at += 1;
        }
        result
    }

    fn dollar(&mut self) -> Result<String> {
        self.at += 1;
        if self.peek() == Some('{') {
            self.at += 1;
            return self.braces();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(match self.variables.get(&name) {
            Some(value) => value.to_owned(),
            None if self.rules.keeps_unset => format!("${name}"),
            None => String::new(),
        })
    }

    /// What stands between `${` and `}`.
    fn braces(&mut self) -> Result<String> {
        match self.peek() {
            None => return Err(Error::new("syntax error: missing '}'")),
            Some('{' | '}' | ':') => return Err(Error::new("syntax error: bad substitution")),
            Some(_) => {}
        }
        let name = self.name();
        // Go has U+FFFF for the end, which is no character that could be printed.
        let modifier = self.next().unwrap_or('\u{fffd}');
        match modifier {
            '}' => Ok(match self.variables.get(&name) {
                Some(value) => value.to_owned(),
                None if self.rules.keeps_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            ':' => {
                let modifier = self.next().unwrap_or('\u{fffd}');
                if matches!(modifier, '#' | '%') {
                    return Err(unsupported(&format!(":{modifier}")));
                }
                self.modified(&name, modifier, true)
            }
            '+' | '-' | '?' | '#' | '%' => self.modified(&name, modifier, false),
            '/' => self.replaced(&name),
            other => Err(unsupported(&other.to_string())),
        }
    }

    /// `${NAME` and a modifier are read; the word up to `}` is not.
    fn modified(&mut self, name: &str, modifier: char, is_null_unset: bool) -> Result<String> {
        let is_pattern = matches!(modifier, '#' | '%');
        let word = self.part('}', is_pattern, "syntax error: missing '}'")?;
        let value = self.variables.get(name);
        let sign = format!("{}{modifier}", if is_null_unset { ":" } else { "" });
        if self.rules.keeps_unset && value.is_none() {
            return Ok(format!("${{{name}{sign}{word}}}"));
        }
        let usable = value.filter(|value| !(is_null_unset && value.is_empty()));
        match modifier {
            '-' => Ok(usable.map_or(word, str::to_owned)),
            '+' => Ok(usable.map_or(String::new(), |_| word)),
            '?' => usable.map(str::to_owned).ok_or_else(|| {
                let why = match (word.as_str(), value) {
                    ("", None) => "is not allowed to be unset",
                    ("", Some(_)) => "is not allowed to be empty",
                    (word, _) => word,
                };
                Error(format!("{name}: {why}"))
            }),
            '#' | '%' => {
                let (pattern, is_greedy) = match word.strip_prefix(modifier) {
                    Some(pattern) => (pattern, true),
                    None => (word.as_str(), false),
                };
                let value = value.unwrap_or_default();
                match modifier {
                    '#' => remove_prefix(pattern, value, is_greedy),
                    _ => remove_suffix(pattern, value, is_greedy),
                }
            }
            _ => Err(unsupported(&sign)),
        }
    }

    /// `${NAME/` is read, and `PATTERN/REPLACEMENT}` or `/PATTERN/REPLACEMENT}` is not.
    fn replaced(&mut self, name: &str) -> Result<String> {
        let is_all = self.peek() == Some('/');
        self.at += usize::from(is_all);
        let pattern = self.part('/', true, "syntax error: missing '/' in ${}")?;
        let replacement = self.part('}', true, "syntax error: missing '}'")?;
        match self.variables.get(name) {
            None if self.rules.keeps_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            value => replace(&pattern, value.unwrap_or_default(), &replacement, is_all),
        }
    }

    /// The text up to `stop`, itself expanded.
    fn part(&mut self, stop: char, keeps_escapes: bool, unended: &str) -> Result<String> {
        let before = std::mem::replace(&mut self.rules.keeps_escapes, keeps_escapes);
        let part = self.until(Some(stop));
        self.rules.keeps_escapes = before;
        match part {
            Ok((text, _)) => Ok(text),
            Err(_) if self.peek().is_none() => Err(Error::new(unended)),
            Err(error) => Err(error),
        }
    }

    /// Letters, digits and `_`; or digits alone; or one of the special parameters.
    fn name(&mut self) -> String {
        let special = |c: char| matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!' | '0');
        let from = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some(c) if special(c) => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.text[from..self.at].iter().collect()
    }
}

fn unsupported(modifier: &str) -> Error {
    Error(format!("unsupported modifier ({modifier}) in substitution"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(word: &str) -> std::result::Result<String, String> {
        let variables = Variables::of(["a=x", "p=/usr/lib/x.tar.gz", "e=", "s=1 2", "q=a*b"]);
        expand(word, '\\', &variables).map_err(|error| error.0)
    }

    #[test]
    fn variables_quotes_and_escapes() {
        for (word, expected) in [
            ("$a", "x"),
            ("${a}b", "xb"),
            ("$ab", ""),
            ("$", "$"),
            ("a$", "a$"),
            ("$$", ""),
            ("$1a", "a"),
            ("\\$a", "$a"),
            ("'$a'", "$a"),
            ("\"$a\"", "x"),
            ("\"\\$a\\\"\\b\"", "$a\"\\b"),
            ("a\\ b\\", "a b"),
            ("${u:-d}${u-d}${e-d}${e:-d}", "ddd"),
            ("${a:+d}${u:+d}${e:+d}${e+d}", "dd"),
            ("${u:-${a}y}", "xy"),
            ("${a:?}${e?}", "x"),
            ("${p#*/}", "usr/lib/x.tar.gz"),
            ("${p##*/}", "x.tar.gz"),
            ("${p%.*}", "/usr/lib/x.tar"),
            ("${p%%.*}", "/usr/lib/x"),
            ("${q#a\\*}${q%\\*b}", "ba"),
            ("${p/x/y}", "/usr/lib/y.tar.gz"),
            ("${p//r/R}", "/usR/lib/x.taR.gz"),
            ("${p//\\//-}", "-usr-lib-x.tar.gz"),
            ("${p/u?r/v}", "/v/lib/x.tar.gz"),
            ("é$a", "éx"),
        ] {
            assert_eq!(expanded(word).as_deref(), Ok(expected), "{word}");
        }
    }

    #[test]
    fn errors_are_dockerds() {
        for (word, why) in [
            ("${", "syntax error: missing '}'"),
            ("${a", "unsupported modifier (\u{fffd}) in substitution"),
            ("${}", "syntax error: bad substitution"),
            ("${a!}", "unsupported modifier (!) in substitution"),
            ("${a:!b}", "unsupported modifier (:!) in substitution"),
            ("${a:#b}", "unsupported modifier (:#) in substitution"),
            ("${a:-b", "syntax error: missing '}'"),
            ("${a/b", "syntax error: missing '/' in ${}"),
            ("${u:?no}", "u: no"),
            ("${u?}", "u: is not allowed to be unset"),
            ("${e:?}", "e: is not allowed to be empty"),
            ("'a", "unexpected end of statement while looking for matching single-quote"),
            ("\"a", "unexpected end of statement while looking for matching double-quote"),
            ("${a#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ] {
            let message = format!("failed to process {}: {why}", crate::go::quote(word));
            assert_eq!(expanded(word), Err(message), "{word}");
        }
    }

    #[test]
    fn what_grows_or_nests_without_end_is_refused() {
        let deep = format!("{}x{}", "${u:-".repeat(100_000), "}".repeat(100_000));
        assert!(expanded(&deep).is_err());
        let long = Variables::of([format!("l={}", "x".repeat(100_000))]);
        assert!(expand(&"$l".repeat(1000), '\\', &long).is_err());
    }

    #[test]
    fn words_are_split_behind_the_variables() {
        let variables = Variables::of(["s=80 443", "a=1"]);
        for (text, words) in [
            ("$s", &["80", "443"][..]),
            ("\"$s\"", &["80 443"]),
            ("a$s b", &["a80", "443", "b"]),
            ("${u:-5}", &["5"]),
            ("80${u:-81}", &["81"]),
            ("  ", &[]),
        ] {
            let found = expand_words(text, Rules::new('\\'), &variables).unwrap();
            assert_eq!(found, words, "{text}");
        }
    }
}
