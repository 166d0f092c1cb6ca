//! Where a value is on an axis, and where its ticks are.

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// From zero.
    Linear,
    /// For what differs by factors.
    Logarithmic,
}

#[derive(Clone, Debug)]
pub(crate) struct Axis {
    kind: Kind,
    /// Values at both ends.
    low: f64,
    high: f64,
    /// Positions of both ends.
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis from one position to another that has room for all of `values`.
    pub(crate) fn new(kind: Kind, values: &[f64], (from, to): (f64, f64)) -> Self {
        let finite = values.iter().copied().filter(|value| value.is_finite());
        let most = finite.clone().fold(0.0, f64::max);
        let least = finite.filter(|value| *value > 0.0).fold(most, f64::min);
        let (low, high) = match kind {
            Kind::Linear => (0.0, most * 1.05),
            Kind::Logarithmic => (below(least), most * 1.15),
        };
        Self { kind, low, high: if high > low { high } else { low + 1.0 }, from, to }
    }

    pub(crate) fn position(&self, value: f64) -> f64 {
        let share = match self.kind {
            Kind::Linear => (value - self.low) / (self.high - self.low),
            // Below its lowest value, zero among it, there is the axis itself.
            Kind::Logarithmic => {
                (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
            }
        };
        self.from + (self.to - self.from) * share
    }

    pub(crate) fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        match self.kind {
            Kind::Linear => {
                let step = step(self.high / 5.0);
                let mut number = 0_u32;
                while f64::from(number) * step <= self.high {
                    ticks.push(f64::from(number) * step);
                    number += 1;
                }
            }
            Kind::Logarithmic => {
                let mut tick = self.low;
                while tick <= self.high {
                    ticks.push(tick);
                    tick *= 10.0;
                }
                // Over a short range the powers of ten alone are too few.
                if ticks.len() < 3 {
                    let more: Vec<f64> = ticks.iter().map(|tick| tick * 3.0).collect();
                    ticks.extend(more.into_iter().filter(|tick| *tick <= self.high));
                }
            }
        }
        ticks
    }
}

/// The largest power of ten that is less.
fn below(value: f64) -> f64 {
    if value > 0.0 { 10_f64.powf((value * 0.8).log10().floor()) } else { 1.0 }
}

/// The smallest of 1, 2, 5, 10, 20, 50 and so on that is not less.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_begin_at_zero() {
        let axis = Axis::new(Kind::Linear, &[50.0, 200.0], (100.0, 0.0));
        assert_eq!(axis.position(0.0), 100.0);
        assert!((axis.position(200.0) - 4.76).abs() < 0.01);
        assert_eq!(axis.ticks(), [0.0, 50.0, 100.0, 150.0, 200.0]);
    }

    #[test]
    fn logarithmic_axes_begin_at_a_power_of_ten() {
        let axis = Axis::new(Kind::Logarithmic, &[2.0, 150.0], (0.0, 100.0));
        assert_eq!(axis.position(1.0), 0.0);
        assert_eq!(axis.position(0.0), 0.0);
        assert!((axis.position(10.0) - 44.7).abs() < 0.1);
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0]);
    }
}
