//! Percentiles.

use serde::{Deserialize, Serialize};

/// What is told of samples.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
}

impl Summary {
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent| rounded(percentile(&sorted, percent));
        Self { count: sorted.len(), p50: at(50), p95: at(95), p99: at(99) }
    }
}

/// The nearest rank: the smallest sample that so many percent of all do not exceed. Of fewer than a
/// hundred samples the 99th percentile is the largest one.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// To three decimals, beyond which there is noise alone.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let all = Summary { count: 100, p50: 50.0, p95: 95.0, p99: 99.0 };
        assert_eq!(Summary::of(&hundred), all);
        let few = Summary { count: 3, p50: 2.0, p95: 7.5, p99: 7.5 };
        assert_eq!(Summary::of(&[7.5, 1.0, 2.0]), few);
        assert!(Summary::of(&[]).p50.is_nan());
    }
}
