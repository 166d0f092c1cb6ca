//! What two answers do not have in common, and the reasons that are known for it.

use std::{fmt, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::side::Answers;

/// One place where the two servers answer differently.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Scenario, request, and where in the answer: `create: defaults: POST /x: body.HostConfig`.
    pub place: String,
    pub theirs: String,
    pub ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}\n    dockerd  {}\n    berth    {}",
            self.place, self.theirs, self.ours
        )
    }
}

/// All differences between the answers of dockerd and of berth, in the order of the scenarios.
pub fn differences(theirs: &Answers, ours: &Answers) -> Vec<Difference> {
    let mut found = Vec::new();
    // One that awaits something in vain answers more than the other.
    let more = theirs.iter().filter(|(place, _)| answer(ours, place).is_none());
    for (place, _) in ours.iter().chain(more) {
        compare(&format!("{place}: "), answer(theirs, place), answer(ours, place), &mut found);
    }
    found
}

fn answer<'a>(answers: &'a Answers, place: &str) -> Option<&'a Value> {
    answers.iter().find(|(answered, _)| answered == place).map(|(_, answer)| answer)
}

fn compare(place: &str, theirs: Option<&Value>, ours: Option<&Value>, found: &mut Vec<Difference>) {
    match (theirs, ours) {
        (Some(theirs), Some(ours)) if theirs == ours => {}
        (Some(Value::Object(theirs)), Some(Value::Object(ours))) => {
            let more = ours.keys().filter(|key| !theirs.contains_key(*key));
            for key in theirs.keys().chain(more) {
                let dot = if place.ends_with(' ') { "" } else { "." };
                compare(&format!("{place}{dot}{key}"), theirs.get(key), ours.get(key), found);
            }
        }
        // Only the first items that differ: one that is missing moves all that follow.
        (Some(Value::Array(theirs)), Some(Value::Array(ours))) if theirs.len() == ours.len() => {
            for (number, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                compare(&format!("{place}[{number}]"), Some(theirs), Some(ours), found);
            }
        }
        _ => found.push(Difference {
            place: place.trim_end().to_owned(),
            theirs: shown(theirs),
            ours: shown(ours),
        }),
    }
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The reviewed list: each line is a pattern of places, with `*` for anything, and after ` -- ` the
/// reason why the difference stays.
#[derive(Debug, Default)]
pub struct Known {
    entries: Vec<(String, usize)>,
}

impl Known {
    /// # Errors
    /// The file cannot be read, or a line has no reason.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut entries = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (pattern, reason) =
                line.split_once(" -- ").with_context(|| format!("no reason: {line}"))?;
            anyhow::ensure!(!reason.trim().is_empty(), "no reason: {line}");
            entries.push((pattern.trim().to_owned(), 0));
        }
        Ok(Self { entries })
    }

    /// Whether the difference has a reason; the line that has it counts as used.
    pub fn has(&mut self, difference: &Difference) -> bool {
        let entry = self.entries.iter_mut().find(|entry| matches(&entry.0, &difference.place));
        if let Some((_, uses)) = entry {
            *uses += 1;
            return true;
        }
        false
    }

    /// Patterns that nothing has matched.
    pub fn unused(&self) -> Vec<&str> {
        let unused = self.entries.iter().filter(|(_, uses)| *uses == 0);
        unused.map(|(pattern, _)| pattern.as_str()).collect()
    }
}

fn matches(pattern: &str, place: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == place };
    let Some(mut place) = place.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = place.find(piece) else { return false };
        place = &place[at + piece.len()..];
    }
    place.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_deepest_place_is_named() {
        let answers = |value: Value| vec![("s: GET /x".to_owned(), value)];
        let theirs = answers(json!({ "status": 200, "body": { "A": [1, { "B": "x" }], "C": 1 } }));
        let ours = answers(json!({ "status": 404, "body": { "A": [1, { "B": "y" }], "D": 1 } }));
        let places: Vec<_> =
            differences(&theirs, &ours).into_iter().map(|found| found.place).collect();
        let mut expected = ["status", "body.A[1].B", "body.C", "body.D"]
            .map(|place| format!("s: GET /x: {place}"));
        expected.sort();
        let mut places = places;
        places.sort();
        assert_eq!(places, expected);
    }

    #[test]
    fn patterns_have_stars() {
        assert!(matches("a: *: body.X", "a: GET /y: body.X"));
        assert!(matches("*.HostsPath", "a: GET /y: body.HostsPath"));
        assert!(!matches("*.HostsPath", "a: GET /y: body.HostsPath.Y"));
        assert!(matches("*: body*", "a: b: body[0].X"));
        assert!(matches("exact", "exact") && !matches("exact", "exactly"));
    }
}
