//! Rates of CPU time, from counters that are read at irregular times.

use std::time::{Duration, Instant};

use berth_base::clock::MonotonicClock;

/// The shortest time that a rate is taken over. Two clients that ask at the same moment would get
/// noise otherwise.
const MIN_SAMPLE: Duration = Duration::from_millis(100);

/// The samples of one pod or container.
#[derive(Debug, Default)]
pub struct Sampler {
    /// When the last rate was taken, and the counter then.
    cpu: Option<(Instant, u64)>,
    rate: Option<u64>,
    clock: MonotonicClock,
}

impl Sampler {
    /// The time of a new sample in nanoseconds since the epoch. It is later than that of the one
    /// before, whatever is done to the clock.
    pub fn at(&mut self) -> i64 {
        self.clock.tick()
    }

    /// Nanoseconds of CPU time per second since the last sample. The first rate is since the start,
    /// `age` ago; there is none until that is long enough.
    pub fn rate(&mut self, cpu_nanos: u64, age: Duration) -> Option<u64> {
        let now = Instant::now();
        let Some((earlier, cpu)) = self.cpu else {
            // The age is by the wall clock, which may have been set back since the start. From an
            // age that says nothing the next rate would be that of a whole life in a moment, so
            // that one is since now.
            self.rate = rate(cpu_nanos, age);
            self.cpu = Some((now, cpu_nanos));
            return self.rate;
        };
        if let Some(rate) = rate(cpu_nanos.saturating_sub(cpu), now - earlier) {
            self.rate = Some(rate);
            self.cpu = Some((now, cpu_nanos));
        }
        self.rate
    }
}

/// None over a time that is too short.
fn rate(cpu_nanos: u64, time: Duration) -> Option<u64> {
    let rate = u128::from(cpu_nanos) * 1_000_000_000 / time.as_nanos().max(1);
    (time >= MIN_SAMPLE).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(rate: Option<u64>, expected: u64) -> bool {
        rate.is_some_and(|rate| (expected * 98 / 100..=expected).contains(&rate))
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_rate_of_a_whole_life_in_a_moment() {
        let mut sampler = Sampler::default();
        let hour = 3_600_000_000_000;
        assert_eq!(sampler.rate(hour, Duration::ZERO), None);
        sampler.cpu = Some((Instant::now().checked_sub(Duration::from_secs(2)).unwrap(), hour));
        let rate = sampler.rate(hour + 1_000_000_000, Duration::ZERO);
        assert!(near(rate, 500_000_000), "{rate:?}");
    }

    #[test]
    fn a_rate_is_since_the_sample_before_and_the_first_since_the_start() {
        let mut sampler = Sampler::default();
        assert_eq!(sampler.rate(1000, Duration::from_millis(10)), None, "too young");
        let mut sampler = Sampler::default();
        assert!(
            near(sampler.rate(3_000_000_000, Duration::from_secs(4)), 750_000_000),
            "{sampler:?}"
        );
        sampler.cpu = Some((Instant::now().checked_sub(Duration::from_secs(2)).unwrap(), 1000));
        let rate = sampler.rate(1000 + 1_000_000_000, Duration::from_secs(60));
        assert!(near(rate, 500_000_000), "{rate:?}");
        assert_eq!(sampler.rate(u64::MAX, Duration::from_secs(60)), rate, "too early for another");
    }
}
