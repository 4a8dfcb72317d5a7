//! What the doctor says: one line a finding, and what to change.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// The service works, and worse than it could, or not for long.
    Warn,
    /// The service does not start, or does not keep what it promises.
    Fail,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    /// What was looked at, in a word.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What was found.
    pub(super) finding: String,
    /// What to change, unless it is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

pub(super) fn ok(check: &'static str, finding: impl Into<String>) -> Finding {
    Finding { check, level: Level::Ok, finding: finding.into(), advice: None }
}

pub(super) fn warn(check: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, level: Level::Warn, finding: finding.into(), advice: Some(advice.into()) }
}

pub(super) fn fail(check: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, level: Level::Fail, finding: finding.into(), advice: Some(advice.into()) }
}
