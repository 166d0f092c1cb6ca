//! The patterns of `${x#PATTERN}` and its like: `*` and `?`, and `\` before one of the two to mean
//! itself.

use regex::Regex;

use crate::error::{Error, Result};

/// Removes what matches at the start of `value`: the longest if `is_greedy`, else the shortest.
pub(crate) fn remove_prefix(pattern: &str, value: &str, is_greedy: bool) -> Result<String> {
    let regex = compile(pattern, is_greedy, true)?;
    let length = regex.find(value).map_or(0, |found| found.end());
    Ok(value[length..].to_owned())
}

/// Removes what matches at the end. An expression looks for the first start of a match, so both the
/// pattern and the value are turned round.
pub(crate) fn remove_suffix(pattern: &str, value: &str, is_greedy: bool) -> Result<String> {
    let value: String = value.chars().rev().collect();
    let rest = remove_prefix(&reversed(pattern), &value, is_greedy)?;
    Ok(rest.chars().rev().collect())
}

/// Replaces the first match, or all of them.
pub(crate) fn replace(pattern: &str, value: &str, with: &str, is_all: bool) -> Result<String> {
    let regex = compile(pattern, true, false)?;
    Ok(match (is_all, regex.find(value)) {
        // As in Go, `$` in the replacement means groups here, of which there are none.
        (true, Some(_)) => regex.replace_all(value, with).into_owned(),
        (false, Some(found)) => {
            format!("{}{with}{}", &value[..found.start()], &value[found.end()..])
        }
        (_, None) => value.to_owned(),
    })
}

fn invalid(pattern: &str, why: &str) -> Error {
    Error(format!("invalid pattern ({pattern}) in substitution: {why}"))
}

fn compile(pattern: &str, is_greedy: bool, is_anchored: bool) -> Result<Regex> {
    let mut expression = String::from(if is_anchored { "^" } else { "" });
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => expression.push_str(if is_greedy { ".*" } else { ".*?" }),
            '?' => expression.push('.'),
            // The end of the pattern had to be escaped; that is no part of it.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => {}
            '\\' => match chars.next() {
                Some(escaped @ ('*' | '?' | '\\')) => {
                    expression.push('\\');
                    expression.push(escaped);
                }
                escaped => {
                    let escaped = escaped.unwrap_or('\u{fffd}');
                    return Err(invalid(pattern, &format!("invalid escape '\\{escaped}'")));
                }
            },
            c => expression.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&expression).map_err(|error| invalid(pattern, &error.to_string()))
}

/// The pattern back to front, in which `\*` stays `\*`.
fn reversed(pattern: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let mut part = c.to_string();
        if c == '\\' {
            part.extend(chars.next());
        }
        parts.push(part);
    }
    parts.into_iter().rev().collect()
}
