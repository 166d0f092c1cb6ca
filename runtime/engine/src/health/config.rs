//! What to probe and how often: the container's own wish, and what it inherits from its image.

use std::time::Duration;

use berth_base::error::{Error, Result};
use berth_dockerfile::HealthConfig;

use super::status::Status;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 3;
/// The shortest duration that may be asked for, in nanoseconds.
const MINIMUM: i64 = 1_000_000;

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

/// Checks what a client has sent.
///
/// # Errors
/// `InvalidArgument` in the words of dockerd.
pub fn check(config: &HealthConfig) -> Result<()> {
    let is_short = |duration: i64| duration != 0 && duration < MINIMUM;
    for (name, is_wrong, limit) in [
        ("Interval", is_short(config.interval), "less than 1ms"),
        ("Timeout", is_short(config.timeout), "less than 1ms"),
        ("Retries", config.retries < 0, "negative"),
        ("StartPeriod", is_short(config.start_period), "less than 1ms"),
        ("StartInterval", is_short(config.start_interval), "less than 1ms"),
    ] {
        if is_wrong {
            return Err(Error::invalid(format!("{name} in Healthcheck cannot be {limit}")));
        }
    }
    Ok(())
}

impl Probe {
    /// The probe that `config` describes. `None` if there is nothing to probe.
    pub fn of(config: &HealthConfig) -> Option<Self> {
        let (kind, arguments) = config.test.as_ref()?.split_first()?;
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
        Some(Self {
            command,
            timeout: or_default(config.timeout, DEFAULT_TIMEOUT),
            interval: or_default(config.interval, DEFAULT_INTERVAL),
            start_period: or_default(config.start_period, Duration::ZERO),
            start_interval: or_default(config.start_interval, DEFAULT_START_INTERVAL),
            retries: match u32::try_from(config.retries) {
                Ok(retries) if retries > 0 => retries,
                _ => DEFAULT_RETRIES,
            },
        })
    }

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
            assert_eq!(check(&config).unwrap_err().message, message);
        }
        assert!(check(&HealthConfig { interval: MINIMUM, ..own }).is_ok());
    }

    #[test]
    fn what_is_no_command_is_no_probe() {
        for test in [&["NONE"][..], &[], &["WHAT", "x"]] {
            assert_eq!(Probe::of(&config(test)), None);
        }
        assert_eq!(Probe::of(&HealthConfig::default()), None);
    }

    #[test]
    fn a_probe_has_dockers_defaults() {
        let shell = ["bash".to_owned(), "-ec".to_owned()];
        let probe = Probe::of(&config(&["CMD-SHELL", "curl -f x"])).unwrap();
        assert_eq!(probe.command("c", &[]).unwrap(), ["/bin/sh", "-c", "curl -f x"]);
        assert_eq!(probe.command("c", &shell).unwrap(), ["bash", "-ec", "curl -f x"]);
        assert_eq!(probe.timeout, DEFAULT_TIMEOUT);
        assert_eq!(probe.delay(Status::Starting, Duration::ZERO), DEFAULT_INTERVAL);
        let probe = Probe::of(&config(&["CMD", "a", "b"])).unwrap();
        assert_eq!(probe.command("c", &shell).unwrap(), ["a", "b"]);
        let error = Probe::of(&config(&["CMD"])).unwrap().command("c", &shell).unwrap_err();
        assert_eq!(error.message, "healthcheck for container c has no command");
        let slow = HealthConfig { start_period: 60 * SECOND, ..config(&["CMD", "a"]) };
        let probe = Probe::of(&slow).unwrap();
        for (status, uptime, delay) in [
            (Status::Starting, 59, DEFAULT_START_INTERVAL),
            (Status::Starting, 60, DEFAULT_INTERVAL),
            (Status::Healthy, 1, DEFAULT_INTERVAL),
        ] {
            assert_eq!(probe.delay(status, Duration::from_secs(uptime)), delay);
        }
    }
}
