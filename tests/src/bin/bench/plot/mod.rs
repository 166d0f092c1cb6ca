//! A report as plots.

mod axis;
mod panel;
mod svg;

use std::{fs, path::Path};

use anyhow::{Context, Result};

use self::{
    axis::Kind,
    panel::{Bars, Frame, Lines, Value},
    svg::{Anchor, Svg, point},
};
use crate::report::{BERTH, Part, Report, Row, Unit};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// Room for the legend above, and for date, machine and versions below.
const HEAD: f64 = 48.0;
const FOOT: f64 = 34.0;
const GAP: f64 = 24.0;

/// Writes those plots for which there are results.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    let plots = [
        ("latency.svg", latency(report)),
        ("density.svg", density(report)),
        ("load.svg", load(report)),
    ];
    for (name, plot) in plots {
        if let Some(text) = plot {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Verbs as bars; a panel for each number at once.
fn latency(report: &Report) -> Option<String> {
    let runtimes = runtimes(report);
    let mut levels: Vec<usize> = report.of(Part::Latency).filter_map(|row| row.key.at).collect();
    levels.sort_unstable();
    levels.dedup();
    let rows = |level: usize| report.of(Part::Latency).filter(move |row| row.key.at == Some(level));
    let verbs = rows(*levels.first()?).count();
    let height = 60.0 + 26.0 * verbs as f64;
    let mut svg = plot(report, "Milliseconds by verb: bar to p50, line to p99", height);
    let names = 160.0;
    let count = levels.len() as f64;
    let width = (WIDTH - 2.0 * MARGIN - names - GAP * (count - 1.0)) / count;
    for (number, level) in levels.iter().enumerate() {
        let names = if number == 0 { names } else { 0.0 };
        let bars = Bars {
            title: format!("{level} at once"),
            unit: Unit::Milliseconds.name().to_owned(),
            kind: Kind::Logarithmic,
            groups: rows(*level).map(|row| group(row, &runtimes)).collect(),
            scale: scale(report.of(Part::Latency)),
            names,
        };
        let x = if number == 0 { MARGIN } else { MARGIN + 160.0 + (width + GAP) * number as f64 };
        bars.draw(&mut svg, Frame { at: point(x, HEAD), width: width + names, height });
    }
    Some(svg.finish())
}

/// What grows with pods, as lines.
fn density(report: &Report) -> Option<String> {
    let panels: Vec<Lines> = [
        (Part::Density, "daemon's memory", Kind::Linear),
        (Part::Density, "all memory, each pod", Kind::Linear),
        (Part::Density, "RunPodSandbox", Kind::Logarithmic),
        (Part::Restart, "kill -9 to a full list", Kind::Logarithmic),
    ]
    .into_iter()
    .filter_map(|(part, name, kind)| lines(report, (part, name), kind))
    .collect();
    let rows = panels.len().div_ceil(2);
    if rows == 0 {
        return None;
    }
    let (width, height) = ((WIDTH - 2.0 * MARGIN - GAP) / 2.0, 220.0);
    let mut svg = plot(report, "The cost of pods as they grow", (height + GAP) * rows as f64);
    for (number, lines) in panels.iter().enumerate() {
        let x = MARGIN + (width + GAP) * (number % 2) as f64;
        let y = HEAD + (height + GAP) * (number / 2) as f64;
        lines.draw(&mut svg, Frame { at: point(x, y), width, height });
    }
    Some(svg.finish())
}

/// Pulls and probes, as bars.
fn load(report: &Report) -> Option<String> {
    let runtimes = runtimes(report);
    let panels: Vec<Bars> = [
        (Part::Pull, "Pulls", Unit::Milliseconds),
        (Part::Probes, "100 exec probes a second", Unit::PercentOfACore),
    ]
    .into_iter()
    .map(|(part, title, unit)| {
        let rows = || report.of(part).filter(move |row| row.key.unit == unit);
        Bars {
            title: title.to_owned(),
            unit: unit.name().to_owned(),
            kind: Kind::Linear,
            groups: rows().map(|row| group(row, &runtimes)).collect(),
            scale: scale(rows()),
            names: 250.0,
        }
    })
    .filter(|bars| !bars.groups.is_empty())
    .collect();
    if panels.is_empty() {
        return None;
    }
    let height = 150.0;
    let all = (height + GAP) * panels.len() as f64;
    let mut svg = plot(report, "Pulls, and the CPU of probes", all);
    for (number, bars) in panels.iter().enumerate() {
        let at = point(MARGIN, HEAD + (height + GAP) * number as f64);
        bars.draw(&mut svg, Frame { at, width: WIDTH - 2.0 * MARGIN - GAP, height });
    }
    Some(svg.finish())
}

/// A plot with its title, legend and foot; `height` is that of its panels.
fn plot(report: &Report, title: &str, height: f64) -> Svg {
    let all = HEAD + height + FOOT;
    let mut svg = Svg::new(WIDTH, all, title);
    svg.text("text title", Anchor::Start, point(MARGIN, 22.0), title);
    let mut x = WIDTH - MARGIN;
    for (number, name) in runtimes(report).into_iter().enumerate().rev() {
        svg.text("text", Anchor::End, point(x, 22.0), name);
        // There is no way to ask how wide a text is: characters are some seven pixels.
        x -= 7.0 * name.len() as f64 + 18.0;
        svg.rectangle(&format!("bar s{number}"), point(x, 12.0), 12.0, 12.0);
        x -= 16.0;
    }
    svg.text("faint small", Anchor::Start, point(MARGIN, all - 12.0), &report.about());
    svg
}

/// berth first, whose colour is the first.
fn runtimes(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> =
        report.rows.iter().flat_map(|row| row.of.keys()).map(String::as_str).collect();
    names.sort_by_key(|name| (*name != BERTH, *name));
    names.dedup();
    names
}

/// All values that are drawn of these rows.
fn scale<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<f64> {
    let values = |row: &'a Row| row.of.values().flat_map(|summary| [summary.p50, summary.p99]);
    rows.flat_map(values).collect()
}

fn group(row: &Row, runtimes: &[&str]) -> (String, Vec<Option<Value>>) {
    let value =
        |name: &&str| row.of.get(*name).map(|summary| Value { p50: summary.p50, p99: summary.p99 });
    (row.key.name.clone(), runtimes.iter().map(value).collect())
}

/// Medians over the numbers of pods. Memory is drawn in MiB.
fn lines(report: &Report, (part, name): (Part, &str), kind: Kind) -> Option<Lines> {
    let rows: Vec<&Row> = report.of(part).filter(|row| row.key.name == name).collect();
    let unit = rows.first()?.key.unit;
    let (unit, factor) = match unit {
        Unit::Kibibytes => ("MiB", 1.0 / 1024.0),
        other => (other.name(), 1.0),
    };
    let line = |runtime: &&str| {
        let at = |row: &&Row| Some((row.key.at? as f64, row.of.get(*runtime)?.p50 * factor));
        rows.iter().filter_map(at).collect()
    };
    Some(Lines {
        title: name.to_owned(),
        unit: unit.to_owned(),
        kind,
        counted: "pods".to_owned(),
        lines: runtimes(report).iter().map(line).collect(),
    })
}
