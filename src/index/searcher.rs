//! Ways to find rows, and what each is asked.
//!
//! ```text
//! set, clear ─► Index ─► each searcher that has rows of its own
//! search ─────► Index ─► the searcher that serves it and is expected to be through first ─► rescore.rs: the answer
//!                          └ its device failed: counted, and the processor scans instead
//! ```
//!
//! A searcher finds candidates with whatever arithmetic and hands them to `rescore.rs`, which makes the answer of the rows
//! themselves. So all searchers give the same similarities to the same rows, and those that are exact the same answers.

use std::sync::Mutex;
use std::time::Duration;

use super::Row;
use super::query::{Filter, Hit, Query, Rows, SearchError};

/// How much of its estimate a meter takes from one more measurement.
const WEIGHT: f64 = 0.2;
/// By how much one measurement may differ from the estimate, at most, to be taken as it is.
const SURPRISE_MAX: f64 = 4.0;
/// Numbers of queries that are measured apart: 1, 2 to 3, 4 to 7, and so on.
const CLASSES: usize = 8;

/// How an answer was found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// How.
    pub method: Method,
    /// Where.
    pub device: Device,
}

/// How rows are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// All were compared.
    Exact,
    /// A graph of neighbours was walked; some of the nearest may be missing.
    Graph,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

impl Method {
    /// Its name: `exact` or `graph`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Graph => "graph",
        }
    }
}

impl Device {
    /// Its name: `cpu`, `cuda` or `metal`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

/// Which searchers may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The one that is expected to be through first.
    #[default]
    Auto,
    /// Exact ones.
    Exact,
    /// The graph, wherever it can.
    Graph,
}

/// What a search comes to, for a searcher to say whether it serves it.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not every searcher asks for everything")]
pub(crate) struct Asked<'a> {
    /// How many queries; at least one.
    pub(super) queries: usize,
    /// The most hits one of them wants.
    pub(super) k: usize,
    /// Places that are looked at if all that the filter leaves are.
    pub(super) places: usize,
    /// Whether a query goes on where a page ended.
    pub(super) pages: bool,
    /// Which rows count.
    pub(super) filter: &'a Filter<'a>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(queries: &[Query<'_>], filter: &'a Filter<'a>, places: usize) -> Self {
        Self {
            queries: queries.len(),
            k: queries.iter().map(|query| query.k).max().unwrap_or(0),
            places: filter.places.map_or(places, <[u32]>::len),
            pages: queries.iter().any(|query| query.after.is_some()),
            filter,
        }
    }
}

/// One way to find rows.
///
/// Calls of `set` and `clear` for one place follow one another, as the changes did; searches go on beside them. Queries are
/// checked before they come here (`query::check`): rows' dims, of length one, 1 to [`super::HITS_MAX`] hits.
pub(crate) trait Searcher: Send + Sync {
    /// What it is called in answers.
    fn path(&self) -> Path;

    /// Takes a row in, in place of what is there. For searchers with rows of their own; the others read the index's.
    fn set(&self, _row: &Row<'_>) {}

    /// Empties a place.
    fn clear(&self, _place: u32) {}

    /// Whether it can answer this.
    fn serves(&self, asked: &Asked<'_>) -> bool;

    /// Whether it answers whatever it serves, however long it takes.
    fn preferred(&self) -> bool {
        false
    }

    /// How long it would take, by what its searches have taken; `None` as long as it has not been measured, and is to be tried.
    fn estimate(&self, asked: &Asked<'_>) -> Option<Duration>;

    /// Each query's nearest rows, as [`super::Index::search`] promises them.
    ///
    /// # Errors
    /// [`SearchError::Device`] when what computes has failed; the search is then made by another.
    fn search(&self, queries: &[Query<'_>], filter: &Filter<'_>, rows: &dyn Rows)
    -> Result<Vec<Vec<Hit>>, SearchError>;

    /// Bytes of memory it has for itself, on whatever device.
    fn memory_bytes(&self) -> usize;
}

/// How long a unit of work takes, by the number of queries that share it: learnt from what searches took.
#[derive(Default)]
pub(super) struct Meter {
    seconds: Mutex<[Option<f64>; CLASSES]>,
}

impl Meter {
    fn class(queries: usize) -> usize {
        (queries.max(1).ilog2() as usize).min(CLASSES - 1)
    }

    /// What so many units would take; `None` if no search of about so many queries has been measured.
    pub(super) fn estimate(&self, queries: usize, units: f64) -> Option<Duration> {
        let seconds = self.seconds.lock().expect("no thread panics while it holds a meter")[Self::class(queries)];
        seconds.map(|seconds| Duration::from_secs_f64(seconds * units))
    }

    /// Notes what so many units took. A single long wait for the processor changes little.
    pub(super) fn note(&self, queries: usize, units: f64, took: Duration) {
        if units <= 0.0 {
            return;
        }
        let measured = took.as_secs_f64() / units;
        let mut seconds = self.seconds.lock().expect("no thread panics while it holds a meter");
        let known = &mut seconds[Self::class(queries)];
        *known = Some(match *known {
            None => measured,
            Some(known) => known + WEIGHT * (measured.clamp(known / SURPRISE_MAX, known * SURPRISE_MAX) - known),
        });
    }
}
