//! What to probe and how often: the container's own wish, and what it inherits from its image.

use std::time::Duration;

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::status::Status;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 3;
/// The shortest duration that may be asked for, in nanoseconds.
const MINIMUM: i64 = 1_000_000;

/// `Config.Healthcheck` of the API and of images. Durations are in nanoseconds, and 0 is the
/// default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthConfig {
    /// Empty to inherit the image's, else `NONE`, `CMD` and a command, or `CMD-SHELL` and a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// What to probe and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    command: Command,
    pub timeout: Duration,
    interval: Duration,
    pub(super) start_period: Duration,
    start_interval: Duration,
    pub(super) retries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Arguments(Vec<String>),
    /// Arguments for the shell of the image.
    Shell(Vec<String>),
}

impl HealthConfig {
    /// Checks what a client has sent.
    ///
    /// # Errors
    /// `InvalidArgument` in the words of dockerd.
    pub fn check(&self) -> Result<()> {
        let is_short = |duration: i64| duration != 0 && duration < MINIMUM;
        for (name, is_wrong, limit) in [
            ("Interval", is_short(self.interval), "less than 1ms"),
            ("Timeout", is_short(self.timeout), "less than 1ms"),
            ("Retries", self.retries < 0, "negative"),
            ("StartPeriod", is_short(self.start_period), "less than 1ms"),
            ("StartInterval", is_short(self.start_interval), "less than 1ms"),
        ] {
            if is_wrong {
                return Err(Error::invalid(format!("{name} in Healthcheck cannot be {limit}")));
            }
        }
        Ok(())
    }

    /// Takes from the image what the container leaves open.
    #[must_use]
    pub fn or(mut self, image: &Self) -> Self {
        if self.test.as_ref().is_none_or(Vec::is_empty) {
            self.test.clone_from(&image.test);
        }
        for (own, inherited) in [
            (&mut self.interval, image.interval),
            (&mut self.timeout, image.timeout),
            (&mut self.start_period, image.start_period),
            (&mut self.start_interval, image.start_interval),
            (&mut self.retries, image.retries),
        ] {
            if *own == 0 {
                *own = inherited;
            }
        }
        self
    }

    /// The probe that this describes. `None` if there is nothing to probe.
    pub fn probe(&self) -> Option<Probe> {
        let (kind, arguments) = self.test.as_ref()?.split_first()?;
        let arguments = arguments.to_vec();
        let command = match kind.as_str() {
            "CMD" => Command::Arguments(arguments),
            "CMD-SHELL" => Command::Shell(arguments),
            _ => return None,
        };
        let or_default = |nanos: i64, default| match u64::try_from(nanos) {
            Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
            _ => default,
        };
        Some(Probe {
            command,
            timeout: or_default(self.timeout, DEFAULT_TIMEOUT),
            interval: or_default(self.interval, DEFAULT_INTERVAL),
            start_period: or_default(self.start_period, Duration::ZERO),
            start_interval: or_default(self.start_interval, DEFAULT_START_INTERVAL),
            retries: match u32::try_from(self.retries) {
                Ok(retries) if retries > 0 => retries,
                _ => DEFAULT_RETRIES,
            },
        })
    }
}

impl Probe {
    /// The arguments of the process. `shell` is that of the image, if it names one.
    ///
    /// # Errors
    /// `InvalidArgument` without a command; dockerd says so only when it probes.
    pub fn command(&self, container: &str, shell: &[String]) -> Result<Vec<String>> {
        let (shell, arguments) = match &self.command {
            Command::Arguments(arguments) => (Vec::new(), arguments),
            Command::Shell(arguments) if shell.is_empty() => {
                (vec!["/bin/sh".to_owned(), "-c".to_owned()], arguments)
            }
            Command::Shell(arguments) => (shell.to_vec(), arguments),
        };
        if arguments.is_empty() {
            let message = format!("healthcheck for container {container} has no command");
            return Err(Error::invalid(message));
        }
        Ok(shell.into_iter().chain(arguments.iter().cloned()).collect())
    }

    /// How long to wait before the next probe, the first one too. It counts from the end of the
    /// last. `uptime` is how long ago the container was started.
    pub fn delay(&self, status: Status, uptime: Duration) -> Duration {
        match status {
            Status::Starting if uptime < self.start_period => self.start_interval,
            _ => self.interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn config(test: &[&str]) -> HealthConfig {
        let test = Some(test.iter().map(|part| (*part).to_owned()).collect());
        HealthConfig { test, ..HealthConfig::default() }
    }

    #[test]
    fn durations_are_checked_in_the_words_of_dockerd() {
        let own = HealthConfig::default();
        for (config, message) in [
            (
                HealthConfig { interval: 999_999, ..own.clone() },
                "Interval in Healthcheck cannot be less than 1ms",
            ),
            (
                HealthConfig { timeout: -1, ..own.clone() },
                "Timeout in Healthcheck cannot be less than 1ms",
            ),
            (
                HealthConfig { retries: -1, ..own.clone() },
                "Retries in Healthcheck cannot be negative",
            ),
            (
                HealthConfig { start_period: 1, ..own.clone() },
                "StartPeriod in Healthcheck cannot be less than 1ms",
            ),
            (
                HealthConfig { start_interval: 1, ..own.clone() },
                "StartInterval in Healthcheck cannot be less than 1ms",
            ),
        ] {
            assert_eq!(config.check().unwrap_err().message, message);
        }
        assert!(HealthConfig { interval: MINIMUM, ..own }.check().is_ok());
    }

    #[test]
    fn a_container_inherits_what_it_leaves_open() {
        let image = HealthConfig { interval: 5, retries: 9, ..config(&["CMD", "image"]) };
        let none = HealthConfig::default();
        assert_eq!(none.clone().or(&image), image);
        assert_eq!(config(&[]).or(&image), image);
        let own = HealthConfig { interval: 7, ..config(&["CMD-SHELL", "own"]) }.or(&image);
        assert_eq!(own, HealthConfig { interval: 7, retries: 9, ..config(&["CMD-SHELL", "own"]) });
        for test in [&["NONE"][..], &[], &["WHAT", "x"]] {
            assert_eq!(config(test).probe(), None);
        }
        assert_eq!(none.probe(), None);
    }

    #[test]
    fn a_probe_has_dockers_defaults() {
        let shell = ["bash".to_owned(), "-ec".to_owned()];
        let probe = config(&["CMD-SHELL", "curl -f x"]).probe().unwrap();
        assert_eq!(probe.command("c", &[]).unwrap(), ["/bin/sh", "-c", "curl -f x"]);
        assert_eq!(probe.command("c", &shell).unwrap(), ["bash", "-ec", "curl -f x"]);
        assert_eq!(probe.timeout, DEFAULT_TIMEOUT);
        assert_eq!(probe.delay(Status::Starting, Duration::ZERO), DEFAULT_INTERVAL);
        let probe = config(&["CMD", "a", "b"]).probe().unwrap();
        assert_eq!(probe.command("c", &shell).unwrap(), ["a", "b"]);
        let error = config(&["CMD"]).probe().unwrap().command("c", &shell).unwrap_err();
        assert_eq!(error.message, "healthcheck for container c has no command");
        let slow = HealthConfig { start_period: 60 * SECOND, ..config(&["CMD", "a"]) };
        let probe = slow.probe().unwrap();
        for (status, uptime, delay) in [
            (Status::Starting, 59, DEFAULT_START_INTERVAL),
            (Status::Starting, 60, DEFAULT_INTERVAL),
            (Status::Healthy, 1, DEFAULT_INTERVAL),
        ] {
            assert_eq!(probe.delay(status, Duration::from_secs(uptime)), delay);
        }
    }
}
