//! Times and durations as Docker writes and reads them. In berth a time is nanoseconds since the
//! epoch (`berth_base::clock`), in the API it is text.

use std::time::Duration;

use berth_base::error::{Error, Result};
use berth_shim::timestamp::rfc3339;

/// What Docker shows for a time that has not come yet, such as the end of a running container: the
/// zero value of Go's `time.Time`.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

const NANOS: i64 = 1_000_000_000;

/// A time in RFC 3339, in UTC, whose fraction has no zeros at its end and is left out when it is
/// zero (Go's `time.RFC3339Nano`).
pub fn rfc3339_nano(nanos: i64) -> String {
    let mut text = rfc3339(nanos);
    text.pop();
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    text.push('Z');
    text
}

/// A time in RFC 3339, in UTC, without what is less than a second.
pub fn rfc3339_seconds(nanos: i64) -> String {
    rfc3339_nano(nanos.div_euclid(NANOS) * NANOS)
}

/// `rfc3339_nano` of a time that may not have come yet.
pub fn rfc3339_or_never(nanos: Option<i64>) -> String {
    nanos.map_or_else(|| NEVER.to_owned(), rfc3339_nano)
}

/// Days from 1 January 1970 to a date of the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_index = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_index + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Reads the times of `since` and `until` in queries: `SECONDS[.NANOS]` since the epoch, where a
/// short fraction is padded with zeros and a long one is cut.
///
/// # Errors
/// `InvalidArgument` in the words of dockerd.
pub fn parse_unix(value: &str) -> Result<i64> {
    unix(value).map_err(|why| Error::invalid(format!("invalid timestamp \"{value}\": {why}")))
}

fn unix(value: &str) -> Result<i64, String> {
    let (seconds, fraction) = value.split_once('.').unwrap_or((value, ""));
    let of_seconds = |why: &str| format!("invalid seconds \"{seconds}\": {why}");
    let whole: i64 = seconds.parse().map_err(|error: std::num::ParseIntError| {
        of_seconds(match error.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                "value out of range"
            }
            _ => "invalid syntax",
        })
    })?;
    if fraction.len() > 20 {
        let length = fraction.len();
        return Err(format!("invalid nanoseconds: length {length} exceeds maximum 20"));
    }
    if let Some((at, wrong)) = fraction.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        return Err(format!("invalid nanoseconds: invalid character '{wrong}' at position {at}"));
    }
    // Years that nanoseconds in 64 bits cannot hold mean "before everything" or "after it".
    Ok(whole.saturating_mul(NANOS).saturating_add(fraction_nanos(fraction)))
}

/// Nanoseconds from the digits behind a decimal point.
fn fraction_nanos(digits: &str) -> i64 {
    let padded = digits.bytes().chain(std::iter::repeat(b'0')).take(9);
    padded.fold(0, |nanos, digit| nanos * 10 + i64::from(digit - b'0'))
}

/// Reads the times of filters such as `until`: a Go duration before `now`, a date or time in the
/// forms of RFC 3339, or seconds since the epoch. A time without a zone is taken as UTC, which is
/// dockerd's zone on nearly every node.
///
/// # Errors
/// `InvalidArgument` in the words of dockerd.
pub fn parse_filter_time(value: &str, now: i64) -> Result<i64> {
    if value.trim().is_empty() {
        return Err(Error::invalid("failed to parse value as time or duration: value is empty"));
    }
    if value != "0"
        && let Some(ago) = parse_duration(value)
    {
        return Ok(now.saturating_sub(ago));
    }
    if let Some(time) = parse_rfc3339(value) {
        return Ok(time);
    }
    // Go's parser names the part that does not fit; the form is what a user can act on.
    if value.contains('-') {
        return Err(Error::invalid(format!("parsing time \"{value}\": not a time in RFC 3339")));
    }
    unix(value).map_err(|_| {
        Error::invalid(format!("failed to parse value as time or duration: \"{value}\""))
    })
}

/// A date, with or without a time, its seconds, a fraction and a zone. `None` if it is none, or out
/// of the range of 64 bits.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = (text.get(..10)?, text.get(10..)?);
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let (time, zone) = split_zone(rest)?;
    let (clock, fraction) = match time.strip_prefix(['T', 't']) {
        None if time.is_empty() => ("00:00:00", ""),
        None => return None,
        Some(time) => time.split_once('.').unwrap_or((time, "")),
    };
    // Seconds may be left out, and minutes too.
    let whole = format!("{clock}{}", ":00:00".get(clock.len().checked_sub(2)?..)?);
    let [hour, minute, second] = numbers(&whole, ':', [2, 2, 2])?;
    let is_valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60
        && fraction.bytes().all(|digit| digit.is_ascii_digit());
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    is_valid.then_some(())?;
    (seconds - zone).checked_mul(NANOS)?.checked_add(fraction_nanos(fraction))
}

/// Splits off `Z` or `+02:00`, and gives the zone in seconds east of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let [hours, minutes] = numbers(&text[at + 1..], ':', [2, 2])?;
    let seconds = hours * 3600 + minutes * 60;
    Some((&text[..at], if text.as_bytes()[at] == b'-' { -seconds } else { seconds }))
}

/// Numbers of so many digits each, and `separator` between them.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        let is_number = part.len() == digits && part.bytes().all(|digit| digit.is_ascii_digit());
        *number = is_number.then(|| part.parse().ok()).flatten()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Nanoseconds of a Go duration such as `1h30m`, `1.5s` or `-10ms` (`time.ParseDuration`). `None`
/// if it is none.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i64;
    while !rest.is_empty() || total == 0 && text.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        total = total.checked_add(nanos_of(number, unit)?)?;
        rest = tail;
    }
    // A sign alone has no parts.
    (!text.trim_start_matches(['-', '+']).is_empty()).then_some(sign * total)
}

fn nanos_of(number: &str, unit: &str) -> Option<i64> {
    let unit = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS,
        "m" => 60 * NANOS,
        "h" => 3600 * NANOS,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part = fraction_nanos(fraction) as f64 / NANOS as f64 * unit as f64;
    whole.checked_mul(unit)?.checked_add(part as i64)
}

/// A duration as Go prints it, such as `1m30s`, `1.5s` or `100ms`.
pub fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (unit, suffix) = match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let minute = 60_000_000_000;
    let small = decimal(nanos % minute, unit);
    match (hours, minutes) {
        (0, 0) => format!("{small}{suffix}"),
        (0, _) => format!("{minutes}m{small}s"),
        _ => format!("{hours}h{minutes}m{small}s"),
    }
}

/// `nanos / unit` without zeros at the end of its fraction.
fn decimal(nanos: u128, unit: u128) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", nanos / unit, nanos % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_475_712_429_000_000_000;

    #[test]
    fn times_are_written_as_go_does() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (T, "2016-10-06T00:07:09Z"),
            (T + 794_669_202, "2016-10-06T00:07:09.794669202Z"),
            (T + 500_000_000, "2016-10-06T00:07:09.5Z"),
            (T + 10, "2016-10-06T00:07:09.00000001Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(rfc3339_nano(nanos), text);
            assert_eq!(parse_rfc3339(text), Some(nanos));
        }
        assert_eq!(rfc3339(T), "2016-10-06T00:07:09.000000000Z");
        assert_eq!(rfc3339_or_never(None), NEVER);
    }

    #[test]
    fn times_of_queries_are_seconds_with_a_fraction() {
        for (text, nanos) in [
            ("0", 0),
            ("1136073600", 1_136_073_600 * NANOS),
            ("1136073600.000000001", 1_136_073_600 * NANOS + 1),
            ("1.5", 1_500_000_000),
            ("1.", NANOS),
            ("1.0000000019", NANOS + 1),
            ("-1", -NANOS),
            ("99999999999999", i64::MAX),
        ] {
            assert_eq!(parse_unix(text).unwrap(), nanos, "{text}");
        }
        for (text, message) in [
            ("x", "invalid timestamp \"x\": invalid seconds \"x\": invalid syntax"),
            (
                "1.2a",
                "invalid timestamp \"1.2a\": invalid nanoseconds: invalid character 'a' at position 1",
            ),
            (
                "99999999999999999999",
                "invalid timestamp \"99999999999999999999\": invalid seconds \
                 \"99999999999999999999\": value out of range",
            ),
        ] {
            assert_eq!(parse_unix(text).unwrap_err().message, message);
        }
    }

    #[test]
    fn times_of_filters_are_durations_or_dates_or_seconds() {
        let hour = 3600 * NANOS;
        for (text, nanos) in [
            ("1h", T - hour),
            ("1h0m0.5s", T - hour - NANOS / 2),
            ("2016-10-06", T - 429 * NANOS),
            ("2016-10-06T00:07:09", T),
            ("2016-10-06T00:07", T - 9 * NANOS),
            ("2016-10-06T00", T - 429 * NANOS),
            ("2016-10-06T02:07:09+02:00", T),
            ("2016-10-05T23:07:09.0-01:00", T),
            ("2016-10-06Z", T - 429 * NANOS),
            ("1475712429", T),
            ("0", 0),
        ] {
            assert_eq!(parse_filter_time(text, T).unwrap(), nanos, "{text}");
        }
        for text in ["", " ", "yesterday", "2016-13-01", "2016-02-30", "2016-10-06T25:00", "1x"] {
            assert!(parse_filter_time(text, T).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (3_661_001_000_000, "1h1m1.001s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
            assert_eq!(parse_duration(text), Some(nanos as i64), "{text}");
        }
        assert_eq!(parse_duration("-1.5h"), Some(-5_400 * NANOS));
        assert_eq!(parse_duration("0"), Some(0));
        for text in ["", "-", "1", "s", ".s", "1d", "1.2.3s", "9999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
