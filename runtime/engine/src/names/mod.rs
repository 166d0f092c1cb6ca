//! Names of containers: what a client may choose, and what one gets that has chosen none.

mod words;

use berth_base::error::{Error, Result};
use rustix::rand::{GetRandomFlags, getrandom};

use self::words::{ADJECTIVES, SURNAMES};

/// How many generated names to try, if others have them, before the name is the short id.
pub const ATTEMPTS: u32 = 6;

/// A name such as `curious_hopper`. From the second attempt on it ends with a digit.
pub fn generate(attempt: u32) -> String {
    loop {
        let name = compose(attempt, random);
        // Steve Wozniak is not boring.
        if name.trim_end_matches(|c: char| c.is_ascii_digit()) != "boring_wozniak" {
            return name;
        }
    }
}

/// A name out of the words that `random` chooses.
fn compose(attempt: u32, mut random: impl FnMut() -> u32) -> String {
    let mut choose = |length: usize| random() as usize % length;
    let (adjective, surname) = (choose(ADJECTIVES.len()), choose(SURNAMES.len()));
    let mut name = format!("{}_{}", ADJECTIVES[adjective], SURNAMES[surname]);
    if attempt > 0 {
        name += &choose(10).to_string();
    }
    name
}

/// A name need not be unpredictable: if the kernel has no random bytes yet, the first words do.
fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    u32::from_ne_bytes(bytes)
}

/// Checks a name that a client has chosen, and removes the slash that it may begin with.
///
/// # Errors
/// `InvalidArgument` in the words of dockerd.
pub fn check(name: &str) -> Result<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    if is_valid(bare) {
        return Ok(bare);
    }
    Err(Error::invalid(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// Whether `name` fits `[a-zA-Z0-9][a-zA-Z0-9_.-]+`: two characters and more.
fn is_valid(name: &str) -> bool {
    let mut characters = name.bytes();
    characters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() > 1
        && characters.all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_each_is_there_once() {
        for words in [&ADJECTIVES[..], &SURNAMES] {
            assert!(words.is_sorted_by(|a, b| a < b));
            assert!(words.iter().all(|word| word.bytes().all(|c| c.is_ascii_lowercase())));
        }
        assert!(ADJECTIVES.len() >= 90 && SURNAMES.len() >= 200);
        assert!(ADJECTIVES.contains(&"boring") && SURNAMES.contains(&"wozniak"));
    }

    #[test]
    fn a_retry_appends_a_digit() {
        assert_eq!(compose(0, || 0), format!("{}_{}", ADJECTIVES[0], SURNAMES[0]));
        assert_eq!(compose(1, || 0), format!("{}_{}0", ADJECTIVES[0], SURNAMES[0]));
        for attempt in 0..ATTEMPTS {
            assert!(check(&generate(attempt)).is_ok());
        }
    }

    #[test]
    fn names_are_checked_as_dockerd_does() {
        for (name, bare) in [("web", "web"), ("/web", "web"), ("0a", "0a"), ("a_.-Z9", "a_.-Z9")] {
            assert_eq!(check(name).unwrap(), bare);
        }
        for name in ["", "/", "a", "_a", "-a", ".a", "a/b", "//a", "a b", "ä1", "a\n"] {
            assert_eq!(
                check(name).unwrap_err().message,
                format!(
                    "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
                )
            );
        }
    }
}
