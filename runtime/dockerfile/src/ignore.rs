//! `.dockerignore`: which paths of a context are left out.

use regex::Regex;

use crate::{error::Error, path, path_match::path_match};

/// The most that a line may have, as Go's scanner has it.
const MAX_LINE: usize = 64 << 10;

/// The patterns of a file. The last one that matches decides.
#[derive(Debug, Default)]
pub struct Ignore(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    /// `!`: what matches is not left out after all.
    is_exception: bool,
    form: Form,
}

/// The common forms need no expression.
#[derive(Debug)]
enum Form {
    Exact(String),
    /// `dir/**`, by what stands before the stars.
    Prefix(String),
    /// `**/name`, by what stands behind the stars.
    Suffix(String),
    Expression(Regex),
    /// What looks like a pattern and is no expression. Nothing is said of a path that comes to it.
    Malformed,
}

/// It came to a malformed pattern.
struct Malformed;

impl Ignore {
    /// Reads a file. One whose patterns are malformed leaves nothing out: dockerd does not look at
    /// that error, and neither does its client, which has sent the context already.
    ///
    /// # Errors
    /// A line is too long.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
        let text = String::from_utf8_lossy(file);
        if text.split('\n').any(|line| line.len() >= MAX_LINE) {
            return Err(Error::new("bufio.Scanner: token too long"));
        }
        let patterns = text.lines().filter_map(pattern);
        let compiled: Option<Vec<Pattern>> = patterns.map(|p| Pattern::compile(&p)).collect();
        Ok(Self(compiled.unwrap_or_default()))
    }

    /// Whether a path of the context is left out, by itself or by a directory above it.
    pub fn matches(&self, path: &str) -> bool {
        let path = path::clean(path);
        // Nobody means to leave out everything.
        if path == "." {
            return false;
        }
        let mut is_left_out = false;
        for pattern in &self.0 {
            // Nothing changes if it says what is so already.
            if pattern.is_exception != is_left_out {
                continue;
            }
            match pattern.matches_or_above(&path) {
                Ok(true) => is_left_out = !pattern.is_exception,
                Ok(false) => {}
                Err(Malformed) => return false,
            }
        }
        is_left_out
    }
}

/// The pattern of a line, relative to the context. `None` for comments and empty lines.
fn pattern(line: &str) -> Option<String> {
    let trimmed = line.trim();
    if line.starts_with('#') || trimmed.is_empty() {
        return None;
    }
    let (sign, rest) = match trimmed.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", trimmed),
    };
    let clean = if rest.is_empty() { String::new() } else { path::clean(rest) };
    let relative = clean.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&clean);
    Some(format!("{sign}{relative}"))
}

impl Pattern {
    /// `None` if it is malformed.
    fn compile(text: &str) -> Option<Self> {
        // Once more: a slash that is gone may have hidden spaces.
        let text = path::clean(text.trim());
        let (is_exception, text) = match text.strip_prefix('!') {
            Some("") => return None,
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        path_match(text, ".").ok()?;
        Some(Self { is_exception, form: form(text) })
    }

    fn matches_or_above(&self, path: &str) -> Result<bool, Malformed> {
        if self.form.matches(path)? {
            return Ok(true);
        }
        for (slash, _) in path.match_indices('/') {
            if self.form.matches(&path[..slash])? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Form {
    fn matches(&self, path: &str) -> Result<bool, Malformed> {
        Ok(match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text.as_str()),
            // `**/name` is `name` at the top as well.
            Self::Suffix(text) => {
                path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path)
            }
            Self::Expression(regex) => regex.is_match(path),
            Self::Malformed => return Err(Malformed),
        })
    }
}

fn form(text: &str) -> Form {
    let is_plain = |text: &str| !text.contains(['*', '?', '[', ']', '\\']);
    if is_plain(text) {
        return Form::Exact(text.to_owned());
    }
    if let Some(prefix) = text.strip_suffix("**").filter(|prefix| is_plain(prefix)) {
        return Form::Prefix(prefix.to_owned());
    }
    if let Some(suffix) = text.strip_prefix("**").filter(|s| !s.is_empty() && is_plain(s)) {
        return Form::Suffix(suffix.to_owned());
    }
    Regex::new(&in_rust(&expression(text))).map_or(Form::Malformed, Form::Expression)
}

/// The expression that dockerd would give to Go. `*` and `?` do not go over slashes; `**` does, and
/// takes the slash behind it along. Classes are taken as they are, and so is what stands in them.
fn expression(text: &str) -> String {
    let mut expression = String::from("^");
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                let _slash = chars.next_if_eq(&'/');
                match chars.peek() {
                    None => expression.push_str(".*"),
                    Some(_) => expression.push_str("(.*/)?"),
                }
            }
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            '\\' => {
                expression.push('\\');
                expression.extend(chars.next());
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                expression.push('\\');
                expression.push(c);
            }
            c => expression.push(c),
        }
    }
    expression.push('$');
    expression
}

/// In Rust, classes may stand in classes, and have `&&` and the like: in Go, these are characters.
fn in_rust(expression: &str) -> String {
    let mut result = String::new();
    let mut chars = expression.chars().peekable();
    let mut is_in_class = false;
    while let Some(c) = chars.next() {
        match (is_in_class, c) {
            (_, '\\') => {
                result.push(c);
                result.extend(chars.next());
            }
            (false, '[') => {
                is_in_class = true;
                result.push(c);
                result.extend(chars.next_if_eq(&'^'));
                // The first bracket ends nothing.
                if chars.next_if_eq(&']').is_some() {
                    result.push_str("\\]");
                }
            }
            (true, ']') => {
                is_in_class = false;
                result.push(c);
            }
            (true, '[' | '&' | '~') => {
                result.push('\\');
                result.push(c);
            }
            _ => result.push(c),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn patterns_are_dockers() {
        for (file, path, expected) in [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("/a/", "a", true),
            ("./a//b/../c", "a/c", true),
            ("*.go", "x.go", true),
            ("*.go", "d/x.go", false),
            ("**/*.go", "d/e/x.go", true),
            ("**/*.go", "x.go", true),
            ("*/x", "d/x", true),
            ("*/x", "d/e/x", false),
            ("**/x", "x", true),
            ("**/x", "d/e/x", true),
            ("**/x", "d/ex", false),
            ("d/**", "d/x/y", true),
            ("d/**", "d", false),
            ("**", "anything/at/all", true),
            ("d/**/x", "d/x", true),
            ("d/**/x", "d/a/b/x", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a.c", "abc", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*\n!keep", "keep", false),
            ("*\n!keep", "other", true),
            ("*\n!d/keep", "d/keep", false),
            ("*\n!d/keep", "d/other", true),
            ("!a\na", "a", true),
            ("a\n!a/b\na/b/c", "a/b/c", true),
            ("# a\n\n  b  ", "a", false),
            ("# a\n\n  b  ", "b", true),
            (" # a", "# a", true),
            ("\u{feff}a", "a", true),
            ("a\r\n", "a", true),
            ("!", "a", false),
            ("a\n[", "a", false),
            ("[a&&]", "&", true),
            ("[[a]", "[", true),
            ("a\n\\q", "a", true),
            ("a\n\\q", "b", false),
            ("*", ".", false),
            ("+(x)$", "+(x)$", true),
            ("é*", "éa", true),
        ] {
            let ignore = Ignore::parse(file.as_bytes()).unwrap();
            assert_eq!(ignore.matches(path), expected, "{file:?} {path}");
        }
        assert!(Ignore::parse(&[b'a'; MAX_LINE]).is_err());
    }

    #[test]
    fn a_large_context_is_no_wait() {
        let file = "node_modules\n**/target\n*.log\n**/*.o\n!keep.o\n.git\ndocs/**\n**/.cache\n";
        let ignore = Ignore::parse(file.as_bytes()).unwrap();
        let started = Instant::now();
        let left_out =
            (0..100_000).filter(|n| ignore.matches(&format!("src/d{}/e/f{n}.o", n % 100))).count();
        assert_eq!(left_out, 100_000);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
