//! The health of a container, as its probes have found it.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{config::Probe, status::Status};
use crate::time::{go_duration, parse_rfc3339, rfc3339_nano};

/// Bytes of a probe's output that are kept.
const MAX_OUTPUT: usize = 4096;
/// Results that are kept.
const MAX_RESULTS: usize = 5;

/// `State.Health` of the API, and of the container's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    pub status: Status,
    /// How many probes have failed since the last one that did not.
    pub failing_streak: u32,
    /// The last results, oldest first.
    #[serde(rename = "Log")]
    pub results: VecDeque<ProbeResult>,
}

/// One run of a probe. Times are in nanoseconds since the epoch, and text in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProbeResult {
    #[serde(with = "time_text")]
    pub start: i64,
    #[serde(with = "time_text")]
    pub end: i64,
    /// 0 is healthy, everything else is not. -1 if the probe did not come to its end.
    pub exit_code: i32,
    pub output: String,
}

impl Health {
    /// The state of a container that has just been started. Results of earlier runs are kept.
    pub fn started(before: Option<Self>) -> Self {
        let results = before.map(|before| before.results).unwrap_or_default();
        Self { status: Status::Starting, failing_streak: 0, results }
    }

    /// While a container is paused or has ended nobody probes it, and dockerd shows it as
    /// unhealthy. That is no event.
    pub fn suspend(&mut self) {
        self.status = Status::Unhealthy;
    }

    /// Takes the result of a probe. `started` is when the container was started, in nanoseconds
    /// since the epoch. Gives the new status if it is another one: the event
    /// `health_status: STATUS`.
    pub fn next(
        mut self,
        probe: &Probe,
        result: ProbeResult,
        started: i64,
    ) -> (Self, Option<Status>) {
        let before = self.status;
        let age = u64::try_from(result.start.saturating_sub(started)).unwrap_or(0);
        let is_starting =
            before == Status::Starting && Duration::from_nanos(age) < probe.start_period;
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.status = Status::Healthy;
        } else if !is_starting {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= probe.retries {
                self.status = Status::Unhealthy;
            }
        }
        while self.results.len() >= MAX_RESULTS {
            self.results.pop_front();
        }
        self.results.push_back(result);
        let changed = (self.status != before).then_some(self.status);
        (self, changed)
    }
}

/// Collects the output of a probe, as far as it is kept.
#[derive(Clone, Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Output {
    pub fn push(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(MAX_OUTPUT - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.is_cut |= kept < bytes.len();
    }

    /// The text, with three dots where it is cut.
    pub fn text(&self) -> String {
        let end = if self.is_cut { "..." } else { "" };
        String::from_utf8_lossy(&self.bytes).into_owned() + end
    }

    /// The text of a probe that was killed because it took longer than `timeout`.
    pub fn timed_out(&self, timeout: Duration) -> String {
        let text = format!("Health check exceeded timeout ({})", go_duration(timeout));
        match self.bytes.is_empty() {
            true => text,
            false => format!("{text}: {}", self.text()),
        }
    }
}

/// Times as text, for serde.
mod time_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(nanos: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::rfc3339_nano(*nanos))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<i64, D::Error> {
        let text = String::deserialize(from)?;
        super::parse_rfc3339(&text).ok_or_else(|| D::Error::custom("not a time in RFC 3339"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{HealthConfig, Probe};

    const SECOND: i64 = 1_000_000_000;

    fn config(test: &[&str]) -> HealthConfig {
        let test = Some(test.iter().map(|part| (*part).to_owned()).collect());
        HealthConfig { test, ..HealthConfig::default() }
    }

    /// Feeds exit codes at times in seconds after the start; gives the statuses and streaks, with
    /// `!` where an event is due.
    fn play(config: &HealthConfig, results: &[(i64, i32)]) -> Vec<String> {
        let probe = Probe::of(config).unwrap();
        let mut health = Health::started(None);
        let mut seen = Vec::new();
        for (second, exit_code) in results {
            let start = second * SECOND;
            let result =
                ProbeResult { start, end: start, exit_code: *exit_code, output: String::new() };
            let (next, event) = health.next(&probe, result, 0);
            assert!(event.is_none_or(|status| status == next.status));
            let mark = if event.is_some() { "!" } else { "" };
            seen.push(format!("{}{} {mark}", next.status.as_str(), next.failing_streak));
            health = next;
        }
        seen
    }

    #[test]
    fn failures_count_unless_the_container_is_starting() {
        let plain = config(&["CMD", "x"]);
        assert_eq!(
            play(&plain, &[(1, 1), (2, 2), (3, -1), (4, 1), (5, 0), (6, 1), (7, 0)]),
            [
                "starting1 ",
                "starting2 ",
                "unhealthy3 !",
                "unhealthy4 ",
                "healthy0 !",
                "healthy1 ",
                "healthy0 "
            ]
        );
        let slow = HealthConfig { start_period: 10 * SECOND, retries: 1, ..plain };
        assert_eq!(
            play(&slow, &[(1, 1), (9, 1), (10, 1)]),
            ["starting0 ", "starting0 ", "unhealthy1 !"]
        );
        // After the first success failures count, within the period as well.
        assert_eq!(play(&slow, &[(1, 0), (2, 1)]), ["healthy0 !", "unhealthy1 !"]);
    }

    #[test]
    fn the_last_five_results_are_kept_over_restarts_and_in_dockers_form() {
        let probe = Probe::of(&config(&["CMD", "x"])).unwrap();
        let mut health = Health::started(None);
        for second in 1..8 {
            let start = second * SECOND;
            let result = ProbeResult { start, end: start + 5, exit_code: 0, output: "ok".into() };
            health = health.next(&probe, result, 0).0;
        }
        let starts: Vec<i64> = health.results.iter().map(|result| result.start / SECOND).collect();
        assert_eq!(starts, [3, 4, 5, 6, 7]);
        health.suspend();
        assert_eq!(health.status, Status::Unhealthy);
        let mut again = Health::started(Some(health));
        again.results.drain(1..);
        let text = r#"{"Status":"starting","FailingStreak":0,"Log":[{"Start":"1970-01-01T00:00:03Z","End":"1970-01-01T00:00:03.000000005Z","ExitCode":0,"Output":"ok"}]}"#;
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert_eq!(serde_json::from_str::<Health>(text).unwrap(), again);
    }

    #[test]
    fn output_is_cut() {
        let mut output = Output::default();
        assert_eq!(
            output.timed_out(Duration::from_secs(30)),
            "Health check exceeded timeout (30s)"
        );
        output.push(&[b'x'; MAX_OUTPUT - 1]);
        output.push(b"y");
        assert!(output.text().ends_with("xy"));
        output.push(b"z");
        assert!(output.text().ends_with("xy..."));
        let timed_out = output.timed_out(Duration::from_millis(1500));
        assert!(timed_out.starts_with("Health check exceeded timeout (1.5s): x"));
    }
}
