//! One line of the table.

use std::fmt;

use serde::Serialize;

/// What a machine is like in one respect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub subject: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to type, or to write where. Absent where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Pods run, but not all of them, or worse than they could.
    Warning,
    /// No pod runs.
    Missing,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        })
    }
}

impl Finding {
    pub(crate) fn ok(subject: &'static str, found: String) -> Self {
        Self { subject, verdict: Verdict::Ok, found, remedy: None }
    }

    pub(crate) fn warning(subject: &'static str, found: String, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Warning, found, remedy: Some(remedy.into()) }
    }

    pub(crate) fn missing(subject: &'static str, found: String, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Missing, found, remedy: Some(remedy.into()) }
    }

    /// For the table, with `width` columns for the subject.
    pub(crate) fn lines(&self, width: usize) -> String {
        let Self { subject, verdict, found, remedy } = self;
        let mut text = format!("{subject:width$}  {verdict:7}  {found}\n");
        if let Some(remedy) = remedy {
            text += &format!("{:width$}           > {remedy}\n", "");
        }
        text
    }
}
