//! The names of signals, for `STOPSIGNAL`.

use crate::error::{Error, Result};

const NAMES: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Checks a number, or a name with or without `SIG` in any case.
///
/// # Errors
/// In dockerd's words.
pub(crate) fn check(signal: &str) -> Result<()> {
    // Any number but 0 is as good as a signal here; a start may refuse it.
    if let Ok(number) = signal.parse::<i64>() {
        return match number {
            0 => Err(Error(format!("invalid signal: {signal}"))),
            _ => Ok(()),
        };
    }
    let upper = signal.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match NAMES.contains(&name) || is_real_time(name) {
        true => Ok(()),
        false => Err(Error(format!("invalid signal: {signal}"))),
    }
}

/// `RTMIN` to `RTMIN+15`, `RTMAX-14` to `RTMAX`.
fn is_real_time(name: &str) -> bool {
    let number = |text: &str| text.parse::<u8>().ok().filter(|n| n.to_string() == text);
    let up = name.strip_prefix("RTMIN+").and_then(number);
    let down = name.strip_prefix("RTMAX-").and_then(number);
    matches!(name, "RTMIN" | "RTMAX")
        || up.is_some_and(|n| (1..=15).contains(&n))
        || down.is_some_and(|n| (1..=14).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for name in
            ["TERM", "sigterm", "SIGKILL", "9", "-1", "500", "RTMIN", "SIGRTMIN+15", "RTMAX-14"]
        {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in ["0", "", "FOO", "SIGSIGTERM", "RTMIN+16", "RTMAX+1", "RTMIN+01"] {
            assert_eq!(check(name), Err(Error(format!("invalid signal: {name}"))), "{name}");
        }
    }
}
