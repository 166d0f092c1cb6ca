//! What a run has done: how often each verb had which answer and how long it took, and what was
//! killed.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::model::Answer;

#[derive(Debug, Default)]
struct Verb {
    answers: BTreeMap<String, usize>,
    /// Of those that were answered.
    times: Vec<Duration>,
}

#[derive(Debug, Default)]
struct Counts {
    verbs: BTreeMap<&'static str, Verb>,
    kills: BTreeMap<&'static str, usize>,
    events: usize,
    restarts: Vec<Duration>,
}

/// Counts, while the run goes on.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    counts: Mutex<Counts>,
}

impl Default for Report {
    fn default() -> Self {
        Self { begun: Instant::now(), counts: Mutex::default() }
    }
}

impl Report {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn verb(&self, name: &'static str, answer: Answer, time: Duration) {
        self.answered(name, word(answer), (answer != Answer::Interrupted).then_some(time));
    }

    /// As `verb`, of another API; without a time if there was no answer.
    pub(super) fn answered(&self, name: &'static str, word: String, time: Option<Duration>) {
        let mut counts = self.counts();
        let verb = counts.verbs.entry(name).or_default();
        *verb.answers.entry(word).or_default() += 1;
        verb.times.extend(time);
    }

    pub(super) fn kill(&self, what: &'static str) {
        *self.counts().kills.entry(what).or_default() += 1;
    }

    pub(super) fn event(&self) {
        self.counts().events += 1;
    }

    /// A daemon served this long after it was started.
    pub(super) fn restart(&self, time: Duration) {
        self.counts().restarts.push(time);
    }

    /// Verbs that were answered or interrupted.
    pub fn verbs(&self) -> usize {
        self.counts().verbs.values().flat_map(|verb| verb.answers.values()).sum()
    }

    pub fn kills(&self, what: &str) -> usize {
        self.counts().kills.get(what).copied().unwrap_or_default()
    }

    /// One line: how far it is.
    pub fn progress(&self) -> String {
        let verbs = self.verbs();
        let seconds = self.begun.elapsed().as_secs().max(1);
        let counts = self.counts();
        let kills: Vec<String> =
            counts.kills.iter().map(|(what, count)| format!("{count} {what}")).collect();
        format!(
            "{seconds:>5} s  {verbs} verbs ({} a second), {} events, killed: {}",
            verbs as u64 / seconds,
            counts.events,
            if kills.is_empty() { "nothing".to_owned() } else { kills.join(", ") }
        )
    }
}

/// The answer without what it said.
fn word(answer: Answer) -> String {
    match answer {
        Answer::Refused(code) => format!("{code:?}"),
        Answer::Interrupted => "interrupted".to_owned(),
        Answer::Output(0) => "OK".to_owned(),
        Answer::Output(code) => format!("exit {code}"),
        Answer::Done | Answer::Sandbox(_) | Answer::Container { .. } | Answer::Listed(..) => {
            "OK".to_owned()
        }
    }
}

/// The value below which this part of all is, from 0 to 1. Sorts them.
pub fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    let index = (times.len() as f64 * part) as usize;
    times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = self.counts();
        let mut table = String::new();
        writeln!(table, "{:<18}{:>9}{:>9}{:>9}  answers", "ms", "p50", "p99", "max")?;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        for (name, verb) in &mut counts.verbs {
            let [p50, p99, max] =
                [0.5, 0.99, 1.0].map(|part| milliseconds(percentile(&mut verb.times, part)));
            let answers: Vec<String> =
                verb.answers.iter().map(|(answer, count)| format!("{count} {answer}")).collect();
            writeln!(table, "{name:<18}{p50:>9.1}{p99:>9.1}{max:>9.1}  {}", answers.join(", "))?;
        }
        let restarts = &mut counts.restarts;
        let [p50, max] = [0.5, 1.0].map(|part| milliseconds(percentile(restarts, part)));
        let count = restarts.len();
        writeln!(table, "{count} restarts: serving after {p50:.0} ms (p50), {max:.0} ms (max)")?;
        f.write_str(&table)?;
        drop(counts);
        f.write_str(self.progress().trim_start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values_are_among_them() {
        let mut times: Vec<Duration> = (1..=4).rev().map(Duration::from_secs).collect();
        assert_eq!(percentile(&mut times, 0.5), Duration::from_secs(3));
        assert_eq!(percentile(&mut times, 1.0), Duration::from_secs(4));
        assert_eq!(percentile(&mut [], 0.5), Duration::ZERO);
    }
}
