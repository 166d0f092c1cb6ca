//! The time, as records and responses have it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64
}

/// Nanoseconds since the machine was booted, in which suspensions count (CLOCK_BOOTTIME of
/// clock_gettime(2)). The same to every process until the next boot, and nobody can set it.
pub fn since_boot() -> i64 {
    // Of libc, since rustix' own has no way around a kernel without a vDSO (User-Mode Linux). Every
    // kernel that berth runs on has this clock.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// How long ago `time` was, which is in nanoseconds since the epoch. Zero if the clock was set back
/// meanwhile.
pub fn since(time: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now().saturating_sub(time)).unwrap_or(0))
}

/// Gives times of which each is later than the one before, whatever is done to the clock. After it
/// was set back they go on one nanosecond apart.
#[derive(Debug, Default)]
pub struct MonotonicClock(i64);

impl MonotonicClock {
    /// The next time in nanoseconds since the epoch.
    pub fn tick(&mut self) -> i64 {
        self.0 = now().max(self.0 + 1);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_changes_nothing() {
        assert!(MonotonicClock::default().tick() > 0);
        assert_eq!(MonotonicClock(i64::MAX - 1).tick(), i64::MAX);
        assert_eq!(since(i64::MAX), Duration::ZERO);
    }
}
