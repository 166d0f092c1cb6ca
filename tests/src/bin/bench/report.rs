//! What a run found out, as it is printed, drawn, written to a file and read from one.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::statistics::Summary;

/// A part of the benchmark, which can be run without the others.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// Each verb of a pod's life.
    Latency,
    /// ExecSync in a container that stays.
    Exec,
    /// Pulls, and the memory that they leave to the daemon.
    Pull,
    /// CPU of exec probes, every second in each of 100 pods.
    Probes,
    /// CNI plugins alone.
    Plugins,
    /// Output of an exec, and forwarded ports.
    Streaming,
    /// Stats, metrics and lists.
    Observing,
    /// Memory and latency as pods grow.
    Density,
    /// From `kill -9` of the daemon to a full list.
    Restart,
    /// docker's verbs, against dockerd with containerd and runc.
    Docker,
}

impl Part {
    pub(crate) const ALL: [Self; 10] = [
        Self::Latency,
        Self::Exec,
        Self::Pull,
        Self::Probes,
        Self::Plugins,
        Self::Streaming,
        Self::Observing,
        Self::Density,
        Self::Restart,
        Self::Docker,
    ];
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "KiB")]
    Kibibytes,
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    #[serde(rename = "1/s")]
    PerSecond,
    #[serde(rename = "% of a core")]
    PercentOfACore,
    #[serde(rename = "%")]
    Percent,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Kibibytes => "KiB",
            Self::MegabytesPerSecond => "MB/s",
            Self::PerSecond => "1/s",
            Self::PercentOfACore => "% of a core",
            Self::Percent => "%",
        }
    }

    /// Of times and memory less is better; of these more is.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::MegabytesPerSecond | Self::PerSecond | Self::Percent)
    }
}

/// What was measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Key {
    pub(crate) part: Part,
    /// How many at once, or how many pods there were.
    pub(crate) at: Option<usize>,
    pub(crate) name: String,
    pub(crate) unit: Unit,
}

impl Key {
    pub(crate) fn new(part: Part, name: &str, unit: Unit) -> Self {
        Self { part, at: None, name: name.to_owned(), unit }
    }

    pub(crate) fn at(self, at: usize) -> Self {
        Self { at: Some(at), ..self }
    }
}

/// One line of a table: what was measured, by the name of the runtime.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) key: Key,
    pub(crate) of: BTreeMap<String, Summary>,
}

impl Row {
    /// How many times better berth is than the other one.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let own = self.of.get(BERTH)?.p50;
        let peer = self.of.iter().find(|(name, _)| *name != BERTH)?.1.p50;
        let ratio = if self.key.unit.more_is_better() { own / peer } else { peer / own };
        ratio.is_finite().then_some(ratio)
    }
}

/// The name of berth among the runtimes.
pub(crate) const BERTH: &str = "berth";

/// Samples while they are taken.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(Key, BTreeMap<String, Vec<f64>>)>);

impl Samples {
    pub(crate) fn add(&mut self, key: &Key, runtime: &str, value: f64) {
        let index = self.0.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
            self.0.push((key.clone(), BTreeMap::new()));
            self.0.len() - 1
        });
        self.0[index].1.entry(runtime.to_owned()).or_default().push(value);
    }

    pub(crate) fn add_time(&mut self, key: &Key, runtime: &str, time: Duration) {
        self.add(key, runtime, time.as_secs_f64() * 1000.0);
    }

    /// The rows, in the order in which they were first met.
    pub(crate) fn rows(self) -> Vec<Row> {
        let summaries = |samples: BTreeMap<String, Vec<f64>>| {
            samples.into_iter().map(|(name, samples)| (name, Summary::of(&samples))).collect()
        };
        self.0.into_iter().map(|(key, samples)| Row { key, of: summaries(samples) }).collect()
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) date: String,
    pub(crate) machine: String,
    /// By the name of the runtime.
    pub(crate) versions: BTreeMap<String, String>,
    /// What is to be known besides.
    pub(crate) notes: BTreeMap<Part, String>,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} was not written by this --json", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Takes in another run, whose parts take the place of those that are here.
    ///
    /// # Errors
    /// It is of another machine, or of other versions: its figures cannot be compared.
    pub(crate) fn merge(mut self, other: Self) -> Result<Self> {
        ensure!(
            self.machine == other.machine,
            "one run is of {}, another of {}: they cannot be put together",
            self.machine,
            other.machine
        );
        for (name, version) in other.versions {
            let known = self.versions.entry(name.clone()).or_insert_with(|| version.clone());
            ensure!(
                *known == version,
                "one run is of {name} {known}, another of {version}: they cannot be put together"
            );
        }
        let newer: Vec<Part> = other.rows.iter().map(|row| row.key.part).collect();
        self.rows.retain(|row| !newer.contains(&row.key.part));
        self.rows.extend(other.rows);
        self.rows.sort_by_key(|row| row.key.part);
        self.notes.extend(other.notes);
        self.date = self.date.max(other.date);
        Ok(self)
    }

    /// Date, machine and versions in one line.
    pub(crate) fn about(&self) -> String {
        let versions = self.versions.iter().map(|(name, version)| format!("{name} {version}"));
        let mut words = vec![self.date.clone(), self.machine.clone()];
        words.extend(versions);
        words.join(" · ")
    }

    pub(crate) fn of(&self, part: Part) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.key.part == part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(part: Part, values: &[(&str, f64)]) -> Report {
        let mut samples = Samples::default();
        for (runtime, value) in values {
            samples.add(&Key::new(part, "x", Unit::Milliseconds).at(4), runtime, *value);
        }
        Report {
            date: "2026-11-28".to_owned(),
            machine: "m".to_owned(),
            versions: BTreeMap::from([(BERTH.to_owned(), "1".to_owned())]),
            notes: BTreeMap::new(),
            rows: samples.rows(),
        }
    }

    #[test]
    fn runs_are_put_together_part_by_part_and_the_last_one_counts() {
        let first = report(Part::Pull, &[(BERTH, 2.0), ("peer", 9.0)]);
        let both = first.merge(report(Part::Exec, &[(BERTH, 1.0)])).unwrap();
        let parts: Vec<Part> = both.rows.iter().map(|row| row.key.part).collect();
        assert_eq!(parts, [Part::Exec, Part::Pull]);
        let again = both.merge(report(Part::Pull, &[(BERTH, 3.0), ("peer", 9.0)])).unwrap();
        assert_eq!(again.rows.len(), 2);
        assert_eq!(again.rows[1].ratio(), Some(3.0));
        let mut other = report(Part::Exec, &[]);
        other.machine = "n".to_owned();
        assert!(again.merge(other).is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        report(Part::Restart, &[(BERTH, 2.0)]).write(&path).unwrap();
        let read = Report::read(&path).unwrap();
        assert_eq!(read.rows[0].key, Key::new(Part::Restart, "x", Unit::Milliseconds).at(4));
        assert_eq!(read.rows[0].of[BERTH].p50, 2.0);
    }
}
