//! One panel of a plot: horizontal bars with names, or lines over numbers.

use super::{
    axis::{Axis, Kind},
    svg::{Anchor, Point, Svg, point},
};

/// Where a panel is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) at: Point,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// One value of a runtime, and how far it goes at times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Bars in groups: one group for each name, one bar for each runtime.
#[derive(Debug)]
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) kind: Kind,
    pub(crate) groups: Vec<(String, Vec<Option<Value>>)>,
    /// Values for which the axis has room. Panels beside each other have the same.
    pub(crate) scale: Vec<f64>,
    /// The room for names to the left; without names, 0.
    pub(crate) names: f64,
}

/// Lines over numbers, one for each runtime.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) kind: Kind,
    /// What is counted along the bottom.
    pub(crate) counted: String,
    pub(crate) lines: Vec<Vec<(f64, f64)>>,
}

/// Room above for the title, and below for numbers.
const ABOVE: f64 = 24.0;
const BELOW: f64 = 20.0;
/// Room for numbers to the left of lines.
const LEFT: f64 = 48.0;

impl Bars {
    pub(crate) fn draw(&self, svg: &mut Svg, frame: Frame) {
        let left = frame.at.x + self.names;
        let right = frame.at.x + frame.width;
        let top = frame.at.y + ABOVE;
        let bottom = frame.at.y + frame.height - BELOW;
        let title = format!("{}, {}", self.title, self.unit);
        svg.text("text title", Anchor::Start, point(left, frame.at.y + 12.0), &title);
        let axis = Axis::new(self.kind, &self.scale, (left, right));
        for tick in axis.ticks() {
            let x = axis.position(tick);
            svg.line("grid", point(x, top), point(x, bottom));
            let below = point(x, bottom + 14.0);
            svg.text("faint small", Anchor::Middle, below, &tick_name(tick));
        }
        let step = (bottom - top) / self.groups.len() as f64;
        for (number, (name, values)) in self.groups.iter().enumerate() {
            let y = top + step * number as f64;
            if self.names > 0.0 {
                let middle = point(left - 6.0, y + step / 2.0 + 4.0);
                svg.text("text", Anchor::End, middle, name);
            }
            group(svg, &axis, (left, y, step), values);
        }
    }
}

/// The bars of one group, below each other.
fn group(svg: &mut Svg, axis: &Axis, (left, y, step): (f64, f64, f64), values: &[Option<Value>]) {
    let thick = step * 0.76 / values.len() as f64;
    for (number, value) in values.iter().enumerate() {
        let Some(Value { p50, p99 }) = *value else { continue };
        let top = y + step * 0.12 + thick * number as f64;
        let end = axis.position(p50);
        let class = format!("bar s{number}");
        svg.rectangle(&class, point(left, top), (end - left).max(1.0), thick - 1.0);
        if p99 > p50 {
            let middle = top + (thick - 1.0) / 2.0;
            let far = point(axis.position(p99), middle);
            svg.line(&format!("whisker s{number}"), point(end, middle), far);
        }
    }
}

impl Lines {
    pub(crate) fn draw(&self, svg: &mut Svg, frame: Frame) {
        let left = frame.at.x + LEFT;
        let right = frame.at.x + frame.width - 12.0;
        let top = frame.at.y + ABOVE;
        let bottom = frame.at.y + frame.height - BELOW - 14.0;
        let title = format!("{}, {}", self.title, self.unit);
        svg.text("text title", Anchor::Start, point(frame.at.x, frame.at.y + 12.0), &title);
        let all = || self.lines.iter().flatten();
        let values: Vec<f64> = all().map(|(_, value)| *value).collect();
        let counts: Vec<f64> = all().map(|(count, _)| *count).collect();
        let up = Axis::new(self.kind, &values, (bottom, top));
        let along = Axis::new(Kind::Linear, &counts, (left, right));
        for tick in up.ticks() {
            let y = up.position(tick);
            svg.line("grid", point(left, y), point(right, y));
            let beside = point(left - 6.0, y + 4.0);
            svg.text("faint small", Anchor::End, beside, &tick_name(tick));
        }
        for tick in along.ticks() {
            let below = point(along.position(tick), bottom + 14.0);
            svg.text("faint small", Anchor::Middle, below, &tick_name(tick));
        }
        let middle = point((left + right) / 2.0, bottom + 28.0);
        svg.text("faint small", Anchor::Middle, middle, &self.counted);
        for (number, line) in self.lines.iter().enumerate() {
            let at =
                |(count, value): &(f64, f64)| point(along.position(*count), up.position(*value));
            let points: Vec<Point> = line.iter().map(at).collect();
            svg.path(&format!("line s{number}"), &points);
            points.iter().for_each(|at| svg.circle(&format!("dot s{number}"), *at));
        }
    }
}

/// As 0.1, 30, 5k.
fn tick_name(tick: f64) -> String {
    match tick {
        tick if tick >= 1000.0 => format!("{}k", tick / 1000.0),
        // Without the digits that a product of floats has at its end.
        tick => format!("{}", (tick * 1000.0).round() / 1000.0),
    }
}
