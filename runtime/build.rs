//! Says which commit this is built from, and when that was made. `BERTH_COMMIT` and
//! `SOURCE_DATE_EPOCH` win over git's word, for sources that come without a repository. Without any
//! of it the version stands alone. The time of the build itself is nowhere: the same sources make the
//! same program.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=BERTH_COMMIT");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Of the checkout at hand, which each commit changes; a worktree has its own elsewhere.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    if let Some(log) = log.filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let commit =
        env::var("BERTH_COMMIT").ok().or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    let time = env::var("SOURCE_DATE_EPOCH").ok();
    let time = time.or_else(|| git(&["show", "--no-patch", "--format=%ct", "HEAD"]));
    let time = time.and_then(|time| time.parse::<i64>().ok());
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let about: Vec<String> = commit.into_iter().chain(time.map(date)).collect();
    let version = match about.is_empty() {
        true => version,
        false => format!("{version} ({})", about.join(", ")),
    };
    println!("cargo::rustc-env=BERTH_VERSION={version}");
    let time = time.map(|time| time.to_string()).unwrap_or_default();
    println!("cargo::rustc-env=BERTH_TIME={time}");
}

/// The only line that git answers; `None` without git, or without a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

/// The day, in UTC, of a time in seconds since the epoch: years of 365.2425 days from the first of
/// March on, so that a leap day is the last one of its year.
fn date(time: i64) -> String {
    let days = time.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
