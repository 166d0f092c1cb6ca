//! A report as text: everything, for a terminal.

use std::fmt::Write;

use crate::{
    report::{Part, Report, Row},
    statistics::Summary,
};

pub(crate) fn table(report: &Report) -> String {
    let mut text = report.about() + "\n";
    for part in Part::ALL {
        let rows: Vec<&Row> = report.of(part).collect();
        for group in rows.chunk_by(|one, next| one.key.at == next.key.at) {
            let _ = write!(text, "\n{}\n", group_table(part, group));
        }
        if let Some(note) = report.notes.get(&part) {
            let _ = writeln!(text, "{note}");
        }
    }
    text
}

/// What a number in a key counts.
pub(crate) fn counted(part: Part, at: usize) -> String {
    match part {
        Part::Latency | Part::Exec => format!("{at} at once"),
        _ if at == 1 => "with 1 pod".to_owned(),
        _ => format!("with {at} pods"),
    }
}

fn group_table(part: Part, rows: &[&Row]) -> String {
    let mut runtimes: Vec<&String> = rows.iter().flat_map(|row| row.of.keys()).collect();
    runtimes.sort_unstable();
    runtimes.dedup();
    let at = rows[0].key.at.map_or(String::new(), |at| format!(", {}", counted(part, at)));
    let title = format!("{part:?}{at}");
    let names: String = runtimes.iter().map(|name| format!("{name:>32}")).collect();
    let heads: String =
        runtimes.iter().map(|_| format!("{:>12}{:>10}{:>10}", "p50", "p95", "p99")).collect();
    let mut text = format!("{title:<62}{names}\n{:<62}{heads}{:>10}", "", "ratio");
    for row in rows {
        let name = format!("  {}, {}", row.key.name, row.key.unit.name());
        let cells: String = runtimes.iter().map(|runtime| cells(row.of.get(*runtime))).collect();
        let ratio = row.ratio().map_or(String::new(), ratio);
        let _ = write!(text, "\n{name:<62}{cells}{ratio:>10}");
    }
    text
}

fn cells(summary: Option<&Summary>) -> String {
    match summary {
        None => format!("{:>12}{:>10}{:>10}", "-", "", ""),
        Some(Summary { count: 1, p50, .. }) => format!("{:>12}{:>10}{:>10}", number(*p50), "", ""),
        Some(Summary { p50, p95, p99, .. }) => {
            format!("{:>12}{:>10}{:>10}", number(*p50), number(*p95), number(*p99))
        }
    }
}

/// How many times as long the other one takes, or how many times as much it needs.
pub(crate) fn ratio(ratio: f64) -> String {
    if ratio >= 100.0 { format!("{ratio:.0}×") } else { format!("{ratio:.1}×") }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
