//! How urgent a text is.

use std::fmt;
use std::str::FromStr;

/// Which of the lines before the model a text waits in. The order is the order in which they are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// Somebody waits for this one text.
    Query,
    /// Documents that are being taken in: a program waits.
    Ingest,
    /// Nobody waits: the cache is being filled beforehand, or kept fresh.
    WarmUp,
}

/// Not the name of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("query, ingest or warm-up is needed")]
pub struct UnknownLane;

impl Lane {
    /// Every lane, those that go first before the others.
    pub const ALL: [Self; 3] = [Self::Query, Self::Ingest, Self::WarmUp];

    /// The lane of a request that names none: a single text is a query, several are ingested.
    #[must_use]
    pub fn of_inputs(count: usize) -> Self {
        if count <= 1 { Self::Query } else { Self::Ingest }
    }

    /// The name used in requests, answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Ingest => "ingest",
            Self::WarmUp => "warm-up",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Lane {
    type Err = UnknownLane;

    fn from_str(name: &str) -> Result<Self, UnknownLane> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == name).ok_or(UnknownLane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_known_by_their_names_and_index_what_is_kept_for_each() {
        for (index, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!((lane.as_str().parse(), lane as usize), (Ok(lane), index));
        }
        assert!(Lane::Query < Lane::Ingest && Lane::Ingest < Lane::WarmUp);
        assert_eq!("Query".parse::<Lane>(), Err(UnknownLane));
    }
}
