//! A report as the tables of README.md, and these put there.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    report::{BERTH, Part, Report, Row, Unit},
    statistics::Summary,
    table::{counted, number, ratio},
};

const BEGIN: &str = "<!-- figures: hack/bench --publish -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Replaces what is between the two marks.
///
/// # Errors
/// The file cannot be read or written, or has no marks.
pub(crate) fn replace(path: &Path, figures: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let (before, rest) = text.split_once(BEGIN).context("README.md has no mark for the figures")?;
    let (_, after) = rest.split_once(END).context("README.md has no mark for their end")?;
    fs::write(path, format!("{before}{BEGIN}{figures}{END}{after}"))?;
    Ok(())
}

/// Two tables: the verbs of a pod's life, and the rest.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = format!("{}.\n", report.about());
    latency(report, &mut text);
    rest(report, &mut text);
    for note in report.notes.values() {
        let _ = write!(text, "\n{}{}.\n", note[..1].to_uppercase(), &note[1..]);
    }
    text
}

/// A line for each verb; columns for each number at once.
fn latency(report: &Report, text: &mut String) {
    let mut levels: Vec<usize> = report.of(Part::Latency).filter_map(|row| row.key.at).collect();
    levels.sort_unstable();
    levels.dedup();
    let Some(first) = levels.first() else { return };
    let _ = write!(text, "\n| p50 / p99, ms |");
    for level in &levels {
        let at = counted(Part::Latency, *level);
        let _ = write!(text, " {at}: {} |", heads(report));
    }
    let columns_of_level = "---|".repeat(heads(report).split('|').count());
    let _ = write!(text, "\n|---|{}\n", columns_of_level.repeat(levels.len()));
    for row in report.of(Part::Latency).filter(|row| row.key.at == Some(*first)) {
        let _ = write!(text, "| {} |", row.key.name);
        for level in &levels {
            let same =
                |other: &&Row| other.key.name == row.key.name && other.key.at == Some(*level);
            if let Some(row) = report.of(Part::Latency).find(same) {
                let _ = write!(text, " {} |", columns(row, report));
            }
        }
        text.push('\n');
    }
}

fn rest(report: &Report, text: &mut String) {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| is_told(row, report)).collect();
    if rows.is_empty() {
        return;
    }
    let line = "---|".repeat(heads(report).split('|').count());
    let _ = write!(text, "\n| p50 / p99 | | {} |\n|---|---|{line}\n", heads(report));
    for row in rows {
        let at = row.key.at.map_or(String::new(), |at| format!(", {}", counted(row.key.part, at)));
        let Row { key, .. } = row;
        let _ =
            writeln!(text, "| {}{at} | {} | {} |", key.name, key.unit.name(), columns(row, report));
    }
}

/// Whether a row is in the second table. As pods grow the last line says most, and the plots show
/// the others.
fn is_told(row: &Row, report: &Report) -> bool {
    let levels = || report.of(row.key.part).filter_map(|row| row.key.at);
    match row.key.part {
        Part::Latency => false,
        Part::Exec => [levels().min(), levels().max()].contains(&row.key.at),
        Part::Density | Part::Restart => row.key.at == levels().max(),
        _ => true,
    }
}

/// The heads of what `columns` has.
fn heads(report: &Report) -> String {
    peer(report).map_or(BERTH.to_owned(), |peer| format!("{BERTH} | {peer} | ratio"))
}

/// The cells of both runtimes, and the ratio.
fn columns(row: &Row, report: &Report) -> String {
    let of = |name: &str| row.of.get(name).map_or("–".to_owned(), |it| cell(row.key.unit, it));
    let ratio = row.ratio().map_or(String::new(), ratio);
    peer(report).map_or(of(BERTH), |peer| format!("{} | {} | {ratio}", of(BERTH), of(peer)))
}

fn cell(unit: Unit, summary: &Summary) -> String {
    match summary {
        // The 99th percentile of what should be much is a good moment, which says nothing.
        Summary { p50, .. } if unit.more_is_better() => number(*p50),
        Summary { count: 1, p50, .. } => number(*p50),
        Summary { p50, p99, .. } => format!("{} / {}", number(*p50), number(*p99)),
    }
}

/// The name of the runtime that berth is compared with.
fn peer(report: &Report) -> Option<&str> {
    let mut names = report.rows.iter().flat_map(|row| row.of.keys());
    names.find(|name| *name != BERTH).map(String::as_str)
}
