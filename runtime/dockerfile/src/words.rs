//! Splits the text of an instruction: into flags and arguments, into words with their quotes, at
//! spaces.

/// The spaces that part words. Unlike Rust's and Unicode's, these are few.
pub(crate) fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// The first word, and what follows the spaces behind it, if there are any.
pub(crate) fn first_word(text: &str) -> (&str, Option<&str>) {
    match text.find(is_space) {
        Some(at) => (&text[..at], Some(text[at..].trim_start_matches(is_space))),
        None => (text, None),
    }
}

/// Splits at spaces, and knows no quotes. Spaces at either end make an empty word.
pub(crate) fn at_spaces(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (word, behind) = first_word(text);
        words.push(word.to_owned());
        rest = behind;
    }
    words
}

/// Splits at spaces that are neither quoted nor escaped. Quotes and escape characters stay.
pub(crate) fn with_quotes(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take().filter(|word| !word.is_empty()));
            continue;
        }
        let word = word.get_or_insert_default();
        // Nothing is escaped in single quotes.
        if c == escape && quote != Some('\'') {
            // At the end of the line there is nothing to escape.
            let Some(escaped) = chars.next() else { break };
            word.push(c);
            word.push(escaped);
            continue;
        }
        match quote {
            Some(open) if open == c => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ => {}
        }
        word.push(c);
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

/// Takes the words that begin with `--` off the start, without their quotes, and returns what is
/// left. A `--` alone ends them.
pub(crate) fn split_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (word, end) = flag(rest, escape);
        rest = &rest[end..];
        if word == "--" {
            break;
        }
        flags.push(word);
        rest = rest.trim_start();
    }
    (flags, rest)
}

/// One word without its quotes, and where it ends.
fn flag(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, at),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ if c == escape => word.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => word.push(c),
        }
    }
    (word, text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_together() {
        for (text, words) in [
            ("a b", &["a", "b"][..]),
            ("a='b c' d", &["a='b c'", "d"]),
            ("a=\"b \\\" c\" d", &["a=\"b \\\" c\"", "d"]),
            ("a='b\\' c", &["a='b\\'", "c"]),
            ("a\\ b c\\", &["a\\ b", "c"]),
            ("\"\" x", &["\"\"", "x"]),
            ("'a b", &["'a b"]),
            ("", &[]),
        ] {
            assert_eq!(with_quotes(text, '\\'), words, "{text}");
        }
    }

    #[test]
    fn flags_come_first() {
        for (text, flags, rest) in [
            ("--from=a b c", &["--from=a"][..], "b c"),
            ("  --a --b=\"c d\" e --f", &["--a", "--b=c d"], "e --f"),
            ("-- --a b", &[], " --a b"),
            ("a --b", &[], "a --b"),
            ("--a", &["--a"], ""),
            ("--a='b\\'c' d", &["--a=b'c"], "d"),
        ] {
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            assert_eq!(split_flags(text, '\\'), (flags, rest), "{text}");
        }
    }

    #[test]
    fn spaces_at_the_end_make_an_empty_word() {
        assert_eq!(at_spaces("a  b"), ["a", "b"]);
        assert_eq!(at_spaces("a "), ["a", ""]);
        assert_eq!(at_spaces("a\u{a0}b"), ["a\u{a0}b"]);
    }
}
