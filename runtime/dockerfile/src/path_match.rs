//! Patterns of paths as Go's `path.Match` has them, for sources of `COPY` and filters of names: `*`
//! and `?` do not go over slashes, `[a-z]` is one character of a class, `\` takes the next one as it
//! is.

/// The pattern is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPattern;

/// Whether all of `text` matches.
///
/// # Errors
/// The pattern is malformed.
pub fn path_match(pattern: &str, text: &str) -> Result<bool, BadPattern> {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    check(&pattern)?;
    let (mut at, mut done) = (0, 0);
    // Where to go on if the last `*` has to take one character more.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&'*') {
            at += 1;
            retry = Some((at, done));
            continue;
        }
        if at == pattern.len() && done == text.len() {
            return Ok(true);
        }
        let step = match pattern.get(at) {
            Some(_) => one(&pattern[at..], text.get(done).copied())?,
            None => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                at += length;
                done += 1;
            }
            // It may take anything but a slash.
            (None, Some((behind, from))) if text.get(from).is_some_and(|c| *c != '/') => {
                retry = Some((behind, from + 1));
                (at, done) = (behind, from + 1);
            }
            (None, _) => return Ok(false),
        }
    }
}

/// A pattern is malformed even where the text ends before.
fn check(pattern: &[char]) -> Result<(), BadPattern> {
    let mut rest = pattern;
    while !rest.is_empty() {
        rest = &rest[element(rest, None)?.0..];
    }
    Ok(())
}

/// The length of the pattern's first element if it matches this character.
fn one(pattern: &[char], text: Option<char>) -> Result<Option<usize>, BadPattern> {
    let (length, matches) = element(pattern, text)?;
    Ok(matches.then_some(length))
}

/// The length of the pattern's first element, and whether it matches this character.
fn element(pattern: &[char], text: Option<char>) -> Result<(usize, bool), BadPattern> {
    Ok(match pattern[0] {
        '?' => (1, text.is_some_and(|c| c != '/')),
        '[' => class(pattern, text)?,
        '\\' => (2, text == Some(*pattern.get(1).ok_or(BadPattern)?)),
        literal => (1, text == Some(literal)),
    })
}

/// The length of a class, `[^a-z0]`, and whether it has this character.
fn class(pattern: &[char], text: Option<char>) -> Result<(usize, bool), BadPattern> {
    let mut at = 1;
    let is_negated = pattern.get(at) == Some(&'^');
    at += usize::from(is_negated);
    let (first, mut found) = (at, false);
    loop {
        if pattern.get(at) == Some(&']') && at > first {
            let matches = text.is_some_and(|_| found != is_negated);
            return Ok((at + 1, matches));
        }
        let low = member(pattern, &mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            at += 1;
            high = member(pattern, &mut at)?;
        }
        found |= text.is_some_and(|c| (low..=high).contains(&c));
    }
}

/// A character of a class, which may be escaped.
fn member(pattern: &[char], at: &mut usize) -> Result<char, BadPattern> {
    let escaped = pattern.get(*at) == Some(&'\\');
    *at += usize::from(escaped);
    let c = *pattern.get(*at).ok_or(BadPattern)?;
    if !escaped && (c == '-' || c == ']') {
        return Err(BadPattern);
    }
    *at += 1;
    Ok(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", Ok(true)),
            ("busy*", "busybox", Ok(true)),
            ("busy*:l*t", "busybox:latest", Ok(true)),
            ("*", "", Ok(true)),
            ("*", "a/b", Ok(false)),
            ("*/b", "a/b", Ok(true)),
            ("*/*/b", "a/b", Ok(false)),
            ("a*b*c", "abbcc", Ok(true)),
            ("a?c", "abc", Ok(true)),
            ("a?c", "a/c", Ok(false)),
            ("b", "busybox", Ok(false)),
            ("[a-c]1", "b1", Ok(true)),
            ("[^a-c]1", "b1", Ok(false)),
            ("\\*", "*", Ok(true)),
            ("\\*", "a", Ok(false)),
            ("[", "a", Err(BadPattern)),
            ("[]a]", "a", Err(BadPattern)),
            ("[-]", "-", Err(BadPattern)),
            ("a\\", "ab", Err(BadPattern)),
            ("b[", "a", Err(BadPattern)),
        ] {
            assert_eq!(path_match(pattern, text), expected, "{pattern} {text}");
        }
    }
}
