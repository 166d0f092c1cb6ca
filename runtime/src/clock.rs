//! What time it is, as records and answers have it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64
}

/// Times of which each is later than the one before, whatever is done to the clock.
#[derive(Debug, Default)]
pub(crate) struct Rising(i64);

impl Rising {
    /// Nanoseconds since the epoch.
    pub(crate) fn next(&mut self) -> i64 {
        self.0 = now().max(self.0 + 1);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_changes_nothing() {
        assert!(Rising::default().next() > 0);
        assert_eq!(Rising(i64::MAX - 1).next(), i64::MAX);
    }
}
