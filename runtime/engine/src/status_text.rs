//! The STATUS column of `docker ps`, which is the daemon's text: `Up 5 minutes (healthy)`.

use std::time::Duration;

use crate::health::Status as Health;

/// What of a container's state shows in its text. Times are how long ago something was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running {
        since: Duration,
        health: Option<Health>,
    },
    Paused {
        since: Duration,
    },
    /// It has ended, and waits for the delay of its restart policy.
    Restarting {
        exit_code: i32,
        ended: Duration,
    },
    Removing,
    Exited {
        exit_code: i32,
        ended: Duration,
    },
    /// Its removal has failed.
    Dead,
}

/// The text of a state.
pub fn status_text(state: State) -> String {
    match state {
        State::Created => "Created".to_owned(),
        State::Running { since, health } => {
            let health = match health {
                None => "",
                Some(Health::Starting) => " (health: starting)",
                Some(Health::Healthy) => " (healthy)",
                Some(Health::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", human_duration(since))
        }
        State::Paused { since } => format!("Up {} (Paused)", human_duration(since)),
        State::Restarting { exit_code, ended } => {
            format!("Restarting ({exit_code}) {} ago", human_duration(ended))
        }
        State::Removing => "Removal In Progress".to_owned(),
        State::Exited { exit_code, ended } => {
            format!("Exited ({exit_code}) {} ago", human_duration(ended))
        }
        State::Dead => "Dead".to_owned(),
    }
}

/// About how long, in words (`units.HumanDuration` of docker/go-units).
pub fn human_duration(duration: Duration) -> String {
    const DAY: u64 = 24;
    const WEEK: u64 = 7 * DAY;
    const MONTH: u64 = 30 * DAY;
    const YEAR: u64 = 365 * DAY;
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Hours alone are rounded, and years are counted from whole ones again.
    let hours = (seconds + 1800) / 3600;
    match (seconds, minutes, hours) {
        (0, _, _) => "Less than a second".to_owned(),
        (1, _, _) => "1 second".to_owned(),
        (2..60, _, _) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, _) if hours < 2 * WEEK => format!("{} days", hours / DAY),
        (_, _, _) if hours < 2 * MONTH => format!("{} weeks", hours / WEEK),
        (_, _, _) if hours < 2 * YEAR => format!("{} months", hours / MONTH),
        _ => format!("{} years", seconds / 3600 / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const WEEK: u64 = 7 * DAY;
    const MONTH: u64 = 30 * DAY;
    const YEAR: u64 = 365 * DAY;

    #[test]
    fn durations_are_in_the_words_of_go_units() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (MINUTE, "About a minute"),
            (2 * MINUTE - 1, "About a minute"),
            (3 * MINUTE + 40, "3 minutes"),
            (HOUR - 1, "59 minutes"),
            (HOUR, "About an hour"),
            (HOUR + 29 * MINUTE, "About an hour"),
            (HOUR + 30 * MINUTE, "2 hours"),
            (3 * HOUR + 60 * MINUTE, "4 hours"),
            (36 * HOUR, "36 hours"),
            (47 * HOUR + 29 * MINUTE, "47 hours"),
            (47 * HOUR + 30 * MINUTE, "2 days"),
            (13 * DAY + 5 * HOUR, "13 days"),
            (2 * WEEK + 4 * DAY, "2 weeks"),
            (MONTH, "4 weeks"),
            (MONTH + 2 * WEEK, "6 weeks"),
            (2 * MONTH, "2 months"),
            (23 * MONTH, "23 months"),
            (24 * MONTH, "24 months"),
            (24 * MONTH + 2 * WEEK, "2 years"),
            (3 * YEAR + 2 * MONTH, "3 years"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text, "{seconds} s");
        }
        assert_eq!(human_duration(Duration::from_millis(450)), "Less than a second");
    }

    #[test]
    fn states_have_the_texts_of_dockerd() {
        let since = Duration::from_secs(5 * MINUTE);
        for (state, text) in [
            (State::Created, "Created"),
            (State::Running { since, health: None }, "Up 5 minutes"),
            (State::Running { since, health: Some(Health::Healthy) }, "Up 5 minutes (healthy)"),
            (
                State::Running { since, health: Some(Health::Starting) },
                "Up 5 minutes (health: starting)",
            ),
            (State::Paused { since }, "Up 5 minutes (Paused)"),
            (
                State::Restarting { exit_code: 1, ended: Duration::from_secs(3) },
                "Restarting (1) 3 seconds ago",
            ),
            (
                State::Exited { exit_code: 137, ended: Duration::from_secs(61) },
                "Exited (137) About a minute ago",
            ),
            (State::Removing, "Removal In Progress"),
            (State::Dead, "Dead"),
        ] {
            assert_eq!(status_text(state), text);
        }
    }
}
