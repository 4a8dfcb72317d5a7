//! The rows most similar to a vector.
//!
//! An [`Index`] keeps, of one model's rows, a copy in eight bits a value, by the place that each has in the store, and has
//! searchers that find rows by it (`searcher.rs`). The exact one reads all of it, half of what the rows are, and knows of each row
//! between which bounds its similarity lies (`codes.rs`). Those whose bounds don't keep them out are few; their rows are asked
//! for, and the answer is made of them. The graph (`graph/`), if one is wanted, looks at a few rows, and finds most of the nearest.
//!
//! ```text
//! set, clear ─► matrix.rs   chunk.rs      1,024 places behind a lock: codes, bounds, facts
//! search ─► searcher.rs     who answers, by what it is expected to take
//!           exact.rs        scan.rs       chunks × queries, on several threads      kernel/       products of integers
//!           graph/          walks, and a scan of what is fresh                      codes.rs      bounds
//!           selection.rs    who may be in the answer
//!           rescore.rs      who is: by the rows themselves
//!        ─► device/         the same on a GPU, if one was chosen: its scores say who may be
//! ```
//!
//! Promises: an exact answer is what comparing the query with every row would give, ties and all, by [`similarity`], which is the
//! same to the bit on every processor; every answer's similarities are. A row that was set before a search began, and stays, is
//! seen by it. Rows are set and cleared while searches run; neither waits for more than a chunk, or for a GPU that is
//! 64 MiB of rows behind.
//!
//! Never: keeps a row in full, reads a file but its graph's own, knows what a store is, finds a row that is zero or not finite.

mod chunk;
mod codes;
mod device;
mod exact;
mod graph;
mod kernel;
mod lines;
mod matrix;
mod query;
mod rescore;
mod scan;
mod searcher;
mod selection;

pub use device::{DeviceChoice, DeviceError};
pub use graph::{GraphFigures, GraphOptions, graph_files};
pub use query::{Cursor, Filter, HITS_MAX, Hit, Query, Rows, SearchError};
pub use rescore::similarity;
pub use searcher::{Choice, Device, Method, Path};

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;

use crate::domain::Key;
use exact::Exact;
use graph::Graph;
use matrix::Matrix;
use searcher::{Asked, Searcher};

/// Of so many searches that have a choice, one goes to the searcher that is expected to be second, to know what it takes now.
const EXPLORE_ONE_IN: u64 = 512;
/// By how much longer that may be expected to take.
const EXPLORE_TIMES: f64 = 4.0;

/// The instruction set that searches use on this machine's CPU, such as `avx2`; `scalar` if it has none of ours.
#[must_use]
pub fn instruction_set() -> &'static str {
    kernel::Kernel::supported()[0].name
}

/// A row to be found.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Where it is: a small number, one row to each.
    pub place: u32,
    /// What it is called.
    pub key: Key,
    /// Its place in the order of writes.
    pub sequence: u64,
    /// The number of its namespace.
    pub namespace: u32,
    /// When it was written, in Unix seconds.
    pub created: u32,
    /// When it ceases to be valid, in Unix seconds.
    pub expires: Option<u32>,
    /// The vector; of length one, or bounds are wide and searches slow.
    pub unit: &'a [f16],
}

/// One model's rows, and the searchers that find them.
pub struct Index {
    matrix: Arc<Matrix>,
    exact: Arc<Exact>,
    graph: Option<Graph>,
    /// Beside the exact one, which is always there, and answers where one of these fails.
    others: Vec<Box<dyn Searcher>>,
    choice: Choice,
    chosen: AtomicU64,
    faults: AtomicU64,
    generation: AtomicU64,
}

/// What a search has found, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Each query's nearest rows, nearest first.
    pub hits: Vec<Vec<Hit>>,
    /// How they were found.
    pub path: Path,
}

impl Index {
    /// An index of no rows, which will have `dims` values each. Searches are exact, and use all processors.
    ///
    /// # Panics
    /// When `dims` is zero.
    #[must_use]
    pub fn new(dims: usize) -> Self {
        assert!(dims > 0, "rows have values");
        let matrix = Arc::new(Matrix::new(dims));
        let exact = Exact::over(Arc::clone(&matrix));
        let (chosen, faults, generation) = Default::default();
        Self {
            matrix,
            exact: Arc::new(exact),
            graph: None,
            others: Vec::new(),
            choice: Choice::default(),
            chosen,
            faults,
            generation,
        }
    }

    /// As it is, but with at most so many threads a search, the caller's included. To be said before there is a graph.
    #[must_use]
    pub fn with_threads_max(self, threads_max: NonZero<usize>) -> Self {
        let exact = Exact { threads_max: threads_max.get(), ..Exact::over(Arc::clone(&self.matrix)) };
        let exact = Arc::new(exact);
        Self { exact, ..self }
    }

    /// As it is, with a graph, which is kept from [`Index::start`] on.
    #[must_use]
    pub fn with_graph(self, options: GraphOptions) -> Self {
        let graph = Some(Graph::new(Arc::clone(&self.exact), options));
        Self { graph, ..self }
    }

    /// As it is, with another searcher, before the first row.
    #[must_use]
    pub(crate) fn with_searcher(mut self, searcher: Box<dyn Searcher>) -> Self {
        self.others.push(searcher);
        self
    }

    /// As it is, but answered by such searchers where they can.
    #[must_use]
    pub fn with_choice(self, choice: Choice) -> Self {
        Self { choice, ..self }
    }

    /// Puts a row in its place, unless a later one is there. A row that is zero or not finite cannot be found: it only
    /// takes its place from the one before.
    ///
    /// # Panics
    /// When the row is not as long as the index's rows.
    pub fn set(&self, row: Row<'_>) {
        assert_eq!(row.unit.len(), self.dims(), "a row is as long as the index's rows");
        let uncovered = self.matrix.set(&row);
        self.others.iter().for_each(|searcher| searcher.set(&row));
        self.graph.iter().for_each(|graph| graph.changed(uncovered));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Empties a place.
    pub fn clear(&self, place: u32) {
        let uncovered = self.matrix.clear(place);
        self.others.iter().for_each(|searcher| searcher.clear(place));
        self.graph.iter().for_each(|graph| graph.changed(uncovered));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Says that the rows there were are set: from now on the graph is kept, if there is one. What its snapshots have of the rows
    /// need not be built; all that is done on a thread of its own.
    pub fn start(&self) {
        self.graph.iter().for_each(Graph::start);
    }

    /// Has nothing of rows that are gone left in the graph: parts of it that have any are given up, and what is built of rows copied
    /// before this is not kept. Answers how many parts that were, and which files are of no use any more; they are the caller's to
    /// remove. The rows that are there are scanned until they are built in again, in the background.
    pub fn forget_gone(&self) -> Option<(usize, Vec<std::path::PathBuf>)> {
        self.graph.as_ref().map(Graph::forget_gone)
    }

    /// Waits until the graph that is to be built, of the rows that there are, is built.
    pub fn wait_for_graph(&self) {
        self.graph.iter().for_each(Graph::wait);
    }

    /// Has walks through the graph keep so many rows, in place of what was measured to find 99 % of the nearest: more find more, and
    /// take longer. `None` takes that back.
    pub fn set_breadth(&self, breadth: Option<NonZero<usize>>) {
        self.graph.iter().for_each(|graph| graph.set_breadth(breadth.map_or(0, NonZero::get)));
    }

    /// The graph's figures; zeros if there is none.
    #[must_use]
    pub fn graph_figures(&self) -> GraphFigures {
        self.graph.as_ref().map(Graph::figures).unwrap_or_default()
    }

    /// A number that is another one after every change: what was found when it was the same would be found again, but for rows
    /// that have expired since. To be read before the search that it is kept with.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How many rows there are, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.matrix.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values a row has.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.matrix.dims()
    }

    /// Bytes of memory that the rows take here, in all searchers.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.matrix.memory_bytes() + self.searchers().map(Searcher::memory_bytes).sum::<usize>()
    }

    /// How often a device has failed, and the processor answered.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Each query's nearest rows, nearest first: fewer than it wants only if there are no more. Whichever searcher is chosen
    /// answers; see [`Index::answer`].
    ///
    /// Rows that the index has and `rows` has not, or not any more, are in no answer, and keep none out of it. Of a row that
    /// is replaced meanwhile, the one that was shown counts.
    ///
    /// # Errors
    /// When a query cannot be answered; then none is.
    pub fn search(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        rows: &dyn Rows,
    ) -> Result<Vec<Vec<Hit>>, SearchError> {
        Ok(self.answer(queries, filter, rows, false)?.hits)
    }

    /// As [`Index::search`], and says how. With `exact`, only a searcher that compares all rows answers, whatever the index's
    /// choice.
    ///
    /// # Errors
    /// When a query cannot be answered; then none is.
    pub fn answer(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        rows: &dyn Rows,
        exact: bool,
    ) -> Result<Answer, SearchError> {
        query::check(queries, self.dims())?;
        let asked = Asked::new(queries, filter, self.matrix.places());
        let choice = if exact { Choice::Exact } else { self.choice };
        let searcher = self.chosen(&asked, choice);
        let path = searcher.path();
        match searcher.search(queries, filter, rows) {
            Ok(hits) => Ok(Answer { hits, path }),
            Err(SearchError::Device { device, message }) => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(device = device.name(), message, "a search failed there; the processor answers it");
                Ok(Answer { hits: self.exact.search(queries, filter, rows)?, path: self.exact.path() })
            }
            Err(error) => Err(error),
        }
    }

    fn searchers(&self) -> impl Iterator<Item = &dyn Searcher> {
        let graph = self.graph.iter().map(|graph| graph as &dyn Searcher);
        std::iter::once(&*self.exact as &dyn Searcher).chain(graph).chain(self.others.iter().map(|other| &**other))
    }

    /// Who is to answer. A searcher that was not measured yet is tried.
    fn chosen(&self, asked: &Asked<'_>, choice: Choice) -> &dyn Searcher {
        let exact: &dyn Searcher = &*self.exact;
        if (self.others.is_empty() && self.graph.is_none()) || asked.queries == 0 {
            return exact;
        }
        let may = |searcher: &&dyn Searcher| {
            let method = searcher.path().method;
            searcher.serves(asked) && (choice != Choice::Exact || method == Method::Exact)
        };
        let mut all: Vec<(f64, &dyn Searcher)> = self
            .searchers()
            .filter(may)
            .map(|searcher| (searcher.estimate(asked).map_or(0.0, |estimate| estimate.as_secs_f64()), searcher))
            .collect();
        if choice == Choice::Graph && all.iter().any(|(_, searcher)| searcher.path().method == Method::Graph) {
            all.retain(|(_, searcher)| searcher.path().method == Method::Graph);
        }
        if let Some((_, preferred)) = all.iter().find(|(_, searcher)| searcher.preferred()) {
            return *preferred;
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        match all.as_slice() {
            [first, second, ..]
                if second.0 < EXPLORE_TIMES * first.0
                    && self.chosen.fetch_add(1, Ordering::Relaxed) % EXPLORE_ONE_IN == EXPLORE_ONE_IN - 1 =>
            {
                second.1
            }
            [first, ..] => first.1,
            [] => exact,
        }
    }
}

#[cfg(test)]
mod tests;
