//! Restart policies: whether a container that has ended starts again, and when.
//!
//! Deciding is all that happens here. The truth, such as the number of attempts and whether a user
//! has stopped the container, is in its record; timers are elsewhere.

use std::time::Duration;

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The delay before the first attempt. It doubles with each one that follows.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A container that ran for so long counts as started well: the next delay is the first again.
pub(crate) const RAN_WELL: Duration = Duration::from_secs(10);

/// The policy of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    No,
    Always,
    /// As `Always`, until a user stops it.
    UnlessStopped,
    /// If the exit code is not 0. `maximum` is how often at most; 0 is without a limit.
    OnFailure {
        maximum: u32,
    },
}

/// `HostConfig.RestartPolicy` of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    pub name: String,
    pub maximum_retry_count: i64,
}

/// What follows the end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Stay,
    /// Start again after this delay.
    After(Duration),
}

/// The end of one run of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i32,
    /// A stop, or a signal that `ends_restarts`: whatever the policy is, the container stays.
    pub is_cancelled: bool,
    /// A user has stopped it or sent it any signal.
    pub is_stopped_by_hand: bool,
    /// How often the policy has started it again already (`RestartCount`).
    pub attempts: u32,
    /// How many of those last attempts, one after the other, came after a run of less than ten
    /// seconds.
    pub attempts_in_a_row: u32,
    pub uptime: Duration,
}

/// What the record says of a container when the daemon starts and finds it not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub exit_code: i32,
    pub is_stopped_by_hand: bool,
    /// It was never started.
    pub is_new: bool,
    pub attempts: u32,
}

impl RestartPolicy {
    /// The policy that the fields describe.
    ///
    /// # Errors
    /// `InvalidArgument` in the words of dockerd.
    pub fn check(&self) -> Result<Policy> {
        let count = self.maximum_retry_count;
        let policy = match self.name.as_str() {
            // Older clients send no name, and any number with it.
            "" => return Ok(Policy::No),
            "no" => Policy::No,
            "always" => Policy::Always,
            "unless-stopped" => Policy::UnlessStopped,
            "on-failure" if count < 0 => {
                return Err(invalid("maximum retry count cannot be negative"));
            }
            "on-failure" => {
                let maximum = u32::try_from(count).unwrap_or(u32::MAX);
                return Ok(Policy::OnFailure { maximum });
            }
            unknown => {
                return Err(invalid(format!(
                    "unknown policy '{unknown}'; use one of 'no', 'always', 'on-failure', or \
                     'unless-stopped'"
                )));
            }
        };
        match count {
            0 => Ok(policy),
            _ => {
                let end = if count < 0 { " and cannot be negative" } else { "" };
                Err(invalid(format!("maximum retry count can only be used with 'on-failure'{end}")))
            }
        }
    }
}

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("invalid restart policy: {why}"))
}

impl Policy {
    /// Reads the form of the command line, `on-failure:3`.
    ///
    /// # Errors
    /// `InvalidArgument` in the words of docker.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, count) = match text.split_once(':') {
            Some((_, count)) if count.contains(':') => return Err(invalid("invalid format")),
            Some(("", _)) => return Err(invalid("no policy provided before colon")),
            Some((name, count)) => {
                let count = count.parse();
                (name, count.map_err(|_| invalid("maximum retry count must be an integer"))?)
            }
            None => (text, 0),
        };
        RestartPolicy { name: name.to_owned(), maximum_retry_count: count }.check()
    }

    /// What to do after a run has ended.
    pub fn decide(self, ended: &Ended) -> Decision {
        let left = Left {
            exit_code: ended.exit_code,
            is_stopped_by_hand: ended.is_stopped_by_hand,
            is_new: false,
            attempts: ended.attempts,
        };
        match !ended.is_cancelled && self.at_daemon_start(&left) {
            true => Decision::After(delay(ended)),
            false => Decision::Stay,
        }
    }

    /// Whether to start a container that does not run when the daemon starts. Only
    /// `unless-stopped` knows then that a user has stopped it.
    pub fn at_daemon_start(self, left: &Left) -> bool {
        if left.is_new {
            return false;
        }
        match self {
            Self::No => false,
            Self::Always => true,
            Self::UnlessStopped => !left.is_stopped_by_hand,
            Self::OnFailure { maximum } => {
                left.exit_code != 0 && (maximum == 0 || left.attempts < maximum)
            }
        }
    }
}

/// Whether `docker kill` with `signal` ends the restarts of a container: any signal does, unless
/// the container has a signal of its own for stopping. Then it is that one and SIGKILL.
pub fn ends_restarts(signal: i32, stop_signal: Option<i32>) -> bool {
    const SIGKILL: i32 = 9;
    signal == SIGKILL || stop_signal.is_none_or(|stop_signal| stop_signal == signal)
}

fn delay(ended: &Ended) -> Duration {
    if ended.uptime >= RAN_WELL {
        return FIRST_DELAY;
    }
    // Ten doublings are more than the longest delay.
    FIRST_DELAY.saturating_mul(1 << ended.attempts_in_a_row.min(10)).min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const FAILED: Ended = Ended {
        exit_code: 1,
        is_cancelled: false,
        is_stopped_by_hand: false,
        attempts: 0,
        attempts_in_a_row: 0,
        uptime: SECOND,
    };

    fn check(name: &str, count: i64) -> Result<Policy, String> {
        RestartPolicy { name: name.to_owned(), maximum_retry_count: count }
            .check()
            .map_err(|error| error.message)
    }

    #[test]
    fn policies_are_checked_in_the_words_of_dockerd() {
        let only = "invalid restart policy: maximum retry count can only be used with 'on-failure'";
        for (name, count, expected) in [
            ("", 0, Ok(Policy::No)),
            ("", -3, Ok(Policy::No)),
            ("no", 0, Ok(Policy::No)),
            ("always", 0, Ok(Policy::Always)),
            ("unless-stopped", 0, Ok(Policy::UnlessStopped)),
            ("on-failure", 0, Ok(Policy::OnFailure { maximum: 0 })),
            ("on-failure", 5, Ok(Policy::OnFailure { maximum: 5 })),
            ("always", 5, Err(only.to_owned())),
            ("no", -1, Err(format!("{only} and cannot be negative"))),
            (
                "on-failure",
                -1,
                Err("invalid restart policy: maximum retry count cannot be negative".to_owned()),
            ),
            (
                "sometimes",
                0,
                Err("invalid restart policy: unknown policy 'sometimes'; use one of 'no', \
                     'always', 'on-failure', or 'unless-stopped'"
                    .to_owned()),
            ),
        ] {
            assert_eq!(check(name, count), expected, "{name}:{count}");
        }
    }

    #[test]
    fn the_form_of_the_command_line_is_read() {
        for (text, expected) in [
            ("", Some(Policy::No)),
            ("always", Some(Policy::Always)),
            ("on-failure:3", Some(Policy::OnFailure { maximum: 3 })),
            ("on-failure:", None),
            ("on-failure:x", None),
            ("on-failure:1:2", None),
            (":3", None),
            ("always:3", None),
        ] {
            assert_eq!(Policy::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn each_policy_decides_for_itself() {
        let succeeded = Ended { exit_code: 0, ..FAILED };
        let cancelled = Ended { is_cancelled: true, is_stopped_by_hand: true, ..FAILED };
        let signalled = Ended { is_stopped_by_hand: true, ..FAILED };
        let third = Ended { attempts: 2, ..FAILED };
        let twice = Policy::OnFailure { maximum: 2 };
        for (policy, ended, restarts) in [
            (Policy::No, FAILED, false),
            (Policy::Always, FAILED, true),
            (Policy::Always, succeeded, true),
            (Policy::Always, cancelled, false),
            (Policy::Always, signalled, true),
            (Policy::UnlessStopped, succeeded, true),
            (Policy::UnlessStopped, signalled, false),
            (twice, FAILED, true),
            (twice, succeeded, false),
            (twice, third, false),
            (Policy::OnFailure { maximum: 0 }, third, true),
            (Policy::OnFailure { maximum: 0 }, cancelled, false),
        ] {
            let is_restart = policy.decide(&ended) != Decision::Stay;
            assert_eq!(is_restart, restarts, "{policy:?} {ended:?}");
        }
    }

    #[test]
    fn a_signal_ends_restarts_unless_it_is_not_the_one_for_stopping() {
        for (signal, stop_signal, ends) in
            [(1, None, true), (1, Some(15), false), (15, Some(15), true), (9, Some(15), true)]
        {
            assert_eq!(ends_restarts(signal, stop_signal), ends, "{signal} {stop_signal:?}");
        }
    }

    #[test]
    fn the_delay_doubles_to_a_minute_and_begins_anew_after_ten_seconds() {
        let of = |attempts_in_a_row, uptime| {
            Policy::Always.decide(&Ended { attempts_in_a_row, uptime, ..FAILED })
        };
        for (attempts, milliseconds) in
            [(0, 100), (1, 200), (2, 400), (9, 51_200), (10, 60_000), (1000, 60_000)]
        {
            let expected = Decision::After(Duration::from_millis(milliseconds));
            assert_eq!(of(attempts, SECOND), expected);
        }
        assert_eq!(of(9, 10 * SECOND), Decision::After(FIRST_DELAY));
    }

    #[test]
    fn a_daemon_that_starts_knows_whom_a_user_has_stopped() {
        let left = Left { exit_code: 0, is_stopped_by_hand: false, is_new: false, attempts: 0 };
        let stopped = Left { is_stopped_by_hand: true, ..left };
        let failed = Left { exit_code: 1, ..left };
        let fresh = Left { is_new: true, ..left };
        let on_failure = Policy::OnFailure { maximum: 0 };
        for (policy, left, starts) in [
            (Policy::No, failed, false),
            (Policy::Always, left, true),
            (Policy::Always, stopped, true),
            (Policy::Always, fresh, false),
            (Policy::UnlessStopped, left, true),
            (Policy::UnlessStopped, stopped, false),
            (on_failure, left, false),
            (on_failure, failed, true),
        ] {
            assert_eq!(policy.at_daemon_start(&left), starts, "{policy:?} {left:?}");
        }
    }
}
