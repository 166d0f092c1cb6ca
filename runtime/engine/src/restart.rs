//! Restart policies: whether a container that has ended starts again, and when.
//!
//! Deciding is all that happens here. What the decisions go by, such as the number of restarts and
//! whether a user has stopped the container, is a part of its record; timers are elsewhere.

use std::time::Duration;

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The delay before the first attempt. It doubles with each one that follows.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A container that ran for so long counts as started well: the next delay is the first again.
const RAN_WELL: Duration = Duration::from_secs(10);

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

/// What has happened to a container since a user has started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restarts {
    /// How often its policy has started it again (`RestartCount`).
    pub count: u32,
    /// How many of those came since a run has lasted ten seconds.
    pub in_a_row: u32,
    /// A user has stopped it or sent it any signal.
    pub is_stopped_by_hand: bool,
    /// That was a stop, or a signal that `ends_restarts`: whatever the policy is, the container
    /// stays until the daemon starts.
    pub is_cancelled: bool,
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

    /// Whether to start a container that has run before, and does not when the daemon starts. Only
    /// `unless-stopped` knows then that a user has stopped it.
    pub fn at_daemon_start(self, restarts: &Restarts, exit_code: i32) -> bool {
        match self {
            Self::No => false,
            Self::Always => true,
            Self::UnlessStopped => !restarts.is_stopped_by_hand,
            Self::OnFailure { maximum } => {
                exit_code != 0 && (maximum == 0 || restarts.count < maximum)
            }
        }
    }
}

impl Restarts {
    /// What to do after a run has ended, which lasted for `uptime`. A restart is counted.
    pub fn after_end(&mut self, policy: Policy, exit_code: i32, uptime: Duration) -> Decision {
        if self.is_cancelled || !policy.at_daemon_start(self, exit_code) {
            return Decision::Stay;
        }
        if uptime >= RAN_WELL {
            self.in_a_row = 0;
        }
        // Ten doublings are more than the longest delay.
        let delay = FIRST_DELAY.saturating_mul(1 << self.in_a_row.min(10)).min(LONGEST_DELAY);
        self.count = self.count.saturating_add(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        Decision::After(delay)
    }
}

/// Whether `docker kill` with `signal` ends the restarts of a container: any signal does, unless
/// the container has a signal of its own for stopping. Then it is that one and SIGKILL.
pub fn ends_restarts(signal: i32, stop_signal: Option<i32>) -> bool {
    const SIGKILL: i32 = 9;
    signal == SIGKILL || stop_signal.is_none_or(|stop_signal| stop_signal == signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const NONE: Restarts =
        Restarts { count: 0, in_a_row: 0, is_stopped_by_hand: false, is_cancelled: false };

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
        let cancelled = Restarts { is_cancelled: true, is_stopped_by_hand: true, ..NONE };
        let signalled = Restarts { is_stopped_by_hand: true, ..NONE };
        let third = Restarts { count: 2, ..NONE };
        let twice = Policy::OnFailure { maximum: 2 };
        for (policy, before, exit_code, restarts) in [
            (Policy::No, NONE, 1, false),
            (Policy::Always, NONE, 1, true),
            (Policy::Always, NONE, 0, true),
            (Policy::Always, cancelled, 1, false),
            (Policy::Always, signalled, 1, true),
            (Policy::UnlessStopped, NONE, 0, true),
            (Policy::UnlessStopped, signalled, 1, false),
            (twice, NONE, 1, true),
            (twice, NONE, 0, false),
            (twice, third, 1, false),
            (Policy::OnFailure { maximum: 0 }, third, 1, true),
            (Policy::OnFailure { maximum: 0 }, cancelled, 1, false),
        ] {
            let mut after = before;
            let is_restart = after.after_end(policy, exit_code, SECOND) != Decision::Stay;
            assert_eq!(is_restart, restarts, "{policy:?} {before:?}");
            assert_eq!(after.count, before.count + u32::from(restarts));
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
        let mut restarts = NONE;
        let mut after = |uptime| match restarts.after_end(Policy::Always, 1, uptime) {
            Decision::After(delay) => delay.as_millis(),
            Decision::Stay => 0,
        };
        let delays: Vec<_> = (0..12).map(|_| after(SECOND)).collect();
        let expected =
            [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000];
        assert_eq!(delays, expected);
        assert_eq!([after(10 * SECOND), after(SECOND), after(SECOND)], [100, 200, 400]);
    }

    #[test]
    fn a_daemon_that_starts_knows_whom_a_user_has_stopped() {
        let stopped = Restarts { is_stopped_by_hand: true, is_cancelled: true, ..NONE };
        let on_failure = Policy::OnFailure { maximum: 0 };
        for (policy, restarts, exit_code, starts) in [
            (Policy::No, NONE, 1, false),
            (Policy::Always, NONE, 0, true),
            (Policy::Always, stopped, 0, true),
            (Policy::UnlessStopped, NONE, 0, true),
            (Policy::UnlessStopped, stopped, 0, false),
            (on_failure, NONE, 0, false),
            (on_failure, NONE, 1, true),
        ] {
            let decided = policy.at_daemon_start(&restarts, exit_code);
            assert_eq!(decided, starts, "{policy:?} {restarts:?} {exit_code}");
        }
    }
}
