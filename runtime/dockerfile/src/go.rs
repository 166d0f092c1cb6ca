//! How Go writes and reads values: its verbs end up in the history of images, and its words in
//! errors.

use crate::error::{Error, Result};

const SECOND: i64 = 1_000_000_000;

/// `%q` of a string.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            c => escape(c, &mut quoted),
        }
    }
    quoted.push('"');
    quoted
}

/// `%q` of a list of strings.
pub(crate) fn quote_list(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("[{}]", words.join(" "))
}

/// `%q` of a number: the character with that code.
pub(crate) fn quote_number(number: i64) -> String {
    let mut quoted = String::from('\'');
    let c = u32::try_from(number).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
    match c {
        '\'' => quoted.push_str("\\'"),
        c => escape(c, &mut quoted),
    }
    quoted.push('\'');
    quoted
}

fn escape(c: char, quoted: &mut String) {
    match c {
        '\\' => quoted.push_str("\\\\"),
        '\u{7}' => quoted.push_str("\\a"),
        '\u{8}' => quoted.push_str("\\b"),
        '\u{c}' => quoted.push_str("\\f"),
        '\n' => quoted.push_str("\\n"),
        '\r' => quoted.push_str("\\r"),
        '\t' => quoted.push_str("\\t"),
        '\u{b}' => quoted.push_str("\\v"),
        c if c < ' ' || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
        c if is_printable(c) => quoted.push(c),
        c if u32::from(c) < 0x1_0000 => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
    }
}

/// Rust escapes for debugging what Go does not print, but for quotes, which are handled before. A
/// combining mark is escaped only where a text begins.
fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'') || format!("a{c}").escape_debug().nth(1) == Some(c)
}

/// `String()` of a duration in nanoseconds, as `1m30s`.
pub(crate) fn duration(nanos: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    if magnitude == 0 {
        return "0s".to_owned();
    }
    for (unit, name) in [(1, "ns"), (1_000, "µs"), (1_000_000, "ms")] {
        if magnitude < unit * 1_000 {
            return format!("{sign}{}{name}", decimal(magnitude, unit));
        }
    }
    let second = SECOND.unsigned_abs();
    let (minutes, rest) = (magnitude / (60 * second), magnitude % (60 * second));
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let seconds = decimal(rest, second);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `amount / unit`, without zeros at the end. `unit` is a power of ten.
fn decimal(amount: u64, unit: u64) -> String {
    let (whole, rest) = (amount / unit, amount % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    let fraction = format!("{rest:0digits$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

/// Reads a duration as `1m30s`, in nanoseconds.
///
/// # Errors
/// In Go's words.
pub(crate) fn parse_duration(text: &str) -> Result<i64> {
    let invalid = || Error(format!("time: invalid duration {}", quote(text)));
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_end =
            behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (name, behind) = behind.split_at(unit_end);
        let unit = match name {
            "" => {
                return Err(Error(format!("time: missing unit in duration {}", quote(text))));
            }
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            name => {
                let name = quote(name);
                return Err(Error(format!(
                    "time: unknown unit {name} in duration {}",
                    quote(text)
                )));
            }
        };
        let whole: i64 = match whole {
            "" => 0,
            whole => whole.parse().map_err(|_| invalid())?,
        };
        total += i128::from(whole) * i128::from(unit) + fraction_of(fraction, unit);
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = behind;
    }
    i64::try_from(sign * total).map_err(|_| invalid())
}

/// A part of a unit, from the digits behind the point. Those beyond nanoseconds do not count.
fn fraction_of(digits: &str, unit: i64) -> i128 {
    let (mut value, mut unit) = (0, i128::from(unit));
    let mut scale = 1;
    for digit in digits.bytes().take(18) {
        value = value * 10 + i128::from(digit - b'0');
        scale *= 10;
    }
    unit *= value;
    unit / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_as_by_go() {
        for (text, quoted) in [
            ("a b", r#""a b""#),
            ("\"\\'", r#""\"\\'""#),
            ("\t\n\u{7}\u{1}\u{7f}", r#""\t\n\a\x01\x7f""#),
            ("é☃\u{200b}\u{a0}", r#""é☃\u200b\u00a0""#),
            ("e\u{301}\u{e0001}", "\"e\u{301}\\U000e0001\""),
        ] {
            assert_eq!(quote(text), quoted);
        }
        assert_eq!(quote_list(&["a".to_owned(), "b c".to_owned()]), r#"["a" "b c"]"#);
        for (number, quoted) in [
            (0, r"'\x00'"),
            (3, r"'\x03'"),
            (7, r"'\a'"),
            (39, r"'\''"),
            (65, "'A'"),
            (-1, "'\u{fffd}'"),
        ] {
            assert_eq!(quote_number(number), quoted);
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, nanos, shown) in [
            ("0", 0, "0s"),
            ("1ms", 1_000_000, "1ms"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("5m", 300 * SECOND, "5m0s"),
            ("1h2m3s", 3723 * SECOND, "1h2m3s"),
            ("100us", 100_000, "100µs"),
            ("-2s", -2 * SECOND, "-2s"),
            (".5s", SECOND / 2, "500ms"),
        ] {
            assert_eq!(parse_duration(text).unwrap(), nanos, "{text}");
            assert_eq!(duration(nanos), shown);
        }
        for (text, error) in [
            ("", r#"time: invalid duration """#),
            ("x", r#"time: invalid duration "x""#),
            ("10", r#"time: missing unit in duration "10""#),
            ("1x", r#"time: unknown unit "x" in duration "1x""#),
            ("1.2.3s", r#"time: invalid duration "1.2.3s""#),
            ("99999999999h", r#"time: invalid duration "99999999999h""#),
        ] {
            assert_eq!(parse_duration(text).unwrap_err().0, error);
        }
    }
}
