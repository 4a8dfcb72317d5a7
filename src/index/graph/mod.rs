//! The graph: most rows in sealed segments that are walked, the fresh ones in a tail that is scanned.
//!
//! ```text
//!             ┌ tail: rows of no segment ──────── scan.rs, as the exact searcher does ┐
//! search ─────┤                                                                       ├─► bounds ─► rescore.rs
//!             └ segments ── segment.rs: a walk each ─► places ── scan.rs, those only ─┘
//!
//! upkeep.rs   one thread at low priority: when the tail is worth a segment, or a quarter of one is dead
//!   build.rs      usearch finds the neighbours
//!   calibrate.rs  how broad walks have to be, against comparing with all
//!   snapshot.rs   files, for the next start
//! ```
//!
//! Promises: a row that was set before a search began is found by its walks or its scan: it is in the tail until a segment that
//! covers it is among those that are walked. What walks find is looked up by place, so rows that are gone, replaced or filtered out
//! are in no answer. An answer has fewer hits than wanted only if there are no more: else, and where the graph cannot tell, all rows
//! are scanned. Segments are never changed: a merge makes a new one, and takes the place of others. Of the ten nearest 99 % are
//! found, as measured on each segment.
//!
//! Never: makes a graph of rows that are scanned as quickly, uses a snapshot whose checksum does not stand, fails a search because
//! of a file or a build that failed.

mod build;
mod calibrate;
mod segment;
mod snapshot;
mod upkeep;

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use super::chunk::{Cover, Part};
use super::exact::Exact;
use super::query::{Filter, Hit, Query, Rows, SearchError};
use super::rescore::settle;
use super::scan::Rounded;
use super::searcher::{Asked, Device, Meter, Method, Path, Searcher};
use super::selection::{Candidate, Candidates, Selection};
use segment::{Breadths, Notes, Segment};
use upkeep::Upkeep;

/// The least share of rows that a filter may keep for walks to find enough of them.
const KEPT_MIN: f64 = 0.5;
/// How many rows of a walk are looked up, for each that is wanted.
const LOOK_UP_TIMES: usize = 2;
/// And beside them.
const LOOK_UP_MORE: usize = 16;
/// Queries that are worth another thread.
const THREAD_QUERIES: usize = 4;

/// The files in a folder that are a graph's.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn graph_files(folder: &std::path::Path) -> std::io::Result<Vec<PathBuf>> {
    snapshot::files(folder)
}

/// How a graph is kept.
#[derive(Clone, Debug, Default)]
pub struct GraphOptions {
    /// Where snapshots are, made if absent; without it the graph is built anew at each start.
    pub folder: Option<PathBuf>,
    /// A graph is made of so many rows or more, in place of how many it is found to be worth it for.
    pub rows_min: Option<usize>,
}

/// What a graph has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphFigures {
    /// Segments.
    pub segments: usize,
    /// Rows in them.
    pub rows: usize,
    /// How many of these are gone.
    pub dead: usize,
    /// Bytes of memory they take.
    pub memory_bytes: usize,
}

/// The searcher, and the thread that keeps it.
pub(super) struct Graph {
    exact: Arc<Exact>,
    segments: Arc<Segments>,
    upkeep: Upkeep,
    /// What walks take, a query each, and what scans of the tail take, a row and query each.
    walks: Meter,
    scans: Meter,
    notes: Mutex<Vec<Notes>>,
    breadth: AtomicUsize,
}

/// The segments that searches walk.
#[derive(Default)]
struct Segments {
    all: RwLock<Vec<(NonZero<u32>, Arc<Segment>)>>,
}

impl Segments {
    fn list(&self) -> Vec<(NonZero<u32>, Arc<Segment>)> {
        self.all.read().expect("no thread panics while it holds the segments").clone()
    }

    fn is_empty(&self) -> bool {
        self.all.read().expect("no thread panics while it holds the segments").is_empty()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(NonZero<u32>, Arc<Segment>)>)) {
        change(&mut self.all.write().expect("no thread panics while it holds the segments"));
    }
}

/// A search, as walks are given it.
#[derive(Clone, Copy)]
struct Asking<'a> {
    queries: &'a [Query<'a>],
    rounded: &'a Rounded<'a>,
    filter: &'a Filter<'a>,
    /// About what share of the rows the filter keeps.
    kept: f64,
    rows: &'a dyn Rows,
}

impl Graph {
    /// A graph over the rows that `exact` scans, kept from [`Graph::start`] on.
    pub(super) fn new(exact: Arc<Exact>, options: GraphOptions) -> Self {
        let segments = Arc::new(Segments::default());
        let upkeep = Upkeep::new(Arc::clone(&exact), Arc::clone(&segments), options);
        let (walks, scans, notes) = (Meter::default(), Meter::default(), Mutex::default());
        Self { exact, segments, upkeep, walks, scans, notes, breadth: AtomicUsize::new(0) }
    }

    /// Begins to keep the graph: takes what snapshots have of the rows there are, and builds what they have not.
    pub(super) fn start(&self) {
        self.upkeep.start();
    }

    /// Waits until there is nothing to build.
    pub(super) fn wait(&self) {
        self.upkeep.wait();
    }

    /// Has walks be so broad, in place of what was measured; 0 takes that back.
    pub(super) fn set_breadth(&self, breadth: usize) {
        self.breadth.store(breadth, Ordering::Relaxed);
    }

    /// Hears of a row that has come or gone, and of the segment that had covered what was in its place.
    pub(super) fn changed(&self, uncovered: Cover) {
        self.upkeep.changed(uncovered);
    }

    /// Gives up every segment that has a row that is gone, and what is being built; see [`super::Index::forget_gone`].
    pub(super) fn forget_gone(&self) -> (usize, Vec<PathBuf>) {
        self.upkeep.forget_gone()
    }

    /// About what share of the rows a filter keeps.
    fn kept(&self, filter: &Filter<'_>) -> f64 {
        if filter.is_open() { 1.0 } else { self.exact.matrix.share(filter) }
    }

    pub(super) fn figures(&self) -> GraphFigures {
        let segments = self.segments.list();
        GraphFigures {
            segments: segments.len(),
            rows: segments.iter().map(|(_, segment)| segment.nodes()).sum(),
            dead: segments.iter().map(|(_, segment)| segment.dead()).sum(),
            memory_bytes: segments.iter().map(|(_, segment)| segment.memory_bytes()).sum(),
        }
    }

    /// The candidates of one query in all segments.
    fn walk(&self, asking: &Asking<'_>, query: usize) -> Candidates {
        let Asking { queries, rounded, filter, kept, .. } = *asking;
        let k = queries[query].k;
        let mut notes = self.notes.lock().expect("no thread panics while it holds the notes").pop().unwrap_or_default();
        let mut found: Vec<(f32, u32)> = Vec::new();
        // Taken after the tail was scanned: what had left it by then is covered by one of these.
        for (_, segment) in self.segments.list() {
            let living = 1.0 - segment.dead() as f64 / segment.nodes().max(1) as f64;
            let breadth = match self.breadth.load(Ordering::Relaxed) {
                0 => segment.breadths.of(k),
                breadth => breadth,
            };
            let breadth = (breadth as f64 / (kept * living).max(KEPT_MIN * KEPT_MIN)).ceil() as usize;
            found.extend(segment.walk(self.exact.kernel, rounded.codes_of(query), breadth, &mut notes));
        }
        let mut all = self.notes.lock().expect("no thread panics while it holds the notes");
        if all.len() < self.exact.threads_max {
            all.push(notes);
        }
        drop(all);
        let look_up = ((k * LOOK_UP_TIMES + LOOK_UP_MORE) as f64 / kept).ceil() as usize;
        if found.len() > look_up {
            found.select_nth_unstable_by(look_up, |a, b| b.0.total_cmp(&a.0));
            found.truncate(look_up);
        }
        let mut places: Vec<u32> = found.into_iter().map(|(_, place)| place).collect();
        places.sort_unstable();
        places.dedup();
        let filter = Filter { places: Some(&places), ..filter.clone() };
        let scan = self.exact.scan(&rounded.one(query), &filter, Part::Covered, 1);
        scan.into_iter().next().unwrap_or_default()
    }

    /// The answers of some of the queries, of which the first is the `first`; `None` where the graph does not suffice.
    fn answers(&self, asking: &Asking<'_>, first: usize, tails: &[Candidates]) -> Vec<Option<Vec<Hit>>> {
        let answer = |(query, tail): (usize, &Candidates)| {
            let of_query = &asking.queries[query];
            let walked = self.walk(asking, query);
            let least = walked.found.iter().map(|candidate| candidate.upper).fold(f32::INFINITY, f32::min);
            let candidates = Selection::of(of_query, tail.found.iter().chain(&walked.found).copied().collect());
            let hits = settle(of_query, candidates, asking.rows)?;
            // With fewer than wanted, walks must have come to rows that are not similar enough.
            let is_whole = hits.len() == of_query.k || of_query.min_similarity.is_some_and(|min| least < min);
            is_whole.then_some(hits)
        };
        (first..).zip(tails).map(answer).collect()
    }
}

impl Searcher for Graph {
    fn path(&self) -> Path {
        Path { method: Method::Graph, device: Device::Cpu }
    }

    fn serves(&self, asked: &Asked<'_>) -> bool {
        let may = !asked.pages && asked.k <= Breadths::K_MAX && asked.filter.places.is_none();
        may && !self.segments.is_empty() && self.kept(asked.filter) >= KEPT_MIN
    }

    fn estimate(&self, asked: &Asked<'_>) -> Option<Duration> {
        let walks = self.walks.estimate(asked.queries, asked.queries as f64)?;
        let tail = (asked.queries * self.exact.matrix.tail()) as f64;
        Some(walks + self.scans.estimate(asked.queries, tail).unwrap_or_default())
    }

    fn search(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        rows: &dyn Rows,
    ) -> Result<Vec<Vec<Hit>>, SearchError> {
        let started = Instant::now();
        let kept = self.kept(filter).max(KEPT_MIN);
        let rounded = Rounded::new(queries, self.exact.matrix.dims());
        let tail = self.exact.matrix.tail();
        let tails = match tail {
            0 => vec![Candidates::default(); queries.len()],
            _ => self.exact.scan(&rounded, filter, Part::Tail, self.exact.threads_max),
        };
        let scanned = Instant::now();
        let threads = (queries.len() / THREAD_QUERIES).clamp(1, self.exact.threads_max);
        let share = queries.len().div_ceil(threads).max(1);
        let asking = Asking { queries, rounded: &rounded, filter, kept, rows };
        let work = |(at, tails): (usize, &[Candidates])| self.answers(&asking, at * share, tails);
        let mut shares = tails.chunks(share).enumerate();
        let answers: Vec<Option<Vec<Hit>>> = thread::scope(|scope| {
            let mine = shares.next();
            let others: Vec<_> = shares.map(|share| scope.spawn(move || work(share))).collect();
            let mut answers = mine.map(work).unwrap_or_default();
            for other in others {
                answers.extend(other.join().expect("a walk does not panic"));
            }
            answers
        });
        self.scans.note(queries.len(), (tail * queries.len()) as f64, scanned - started);
        self.walks.note(queries.len(), queries.len() as f64, scanned.elapsed());
        let unsure: Vec<usize> = (0..queries.len()).filter(|&query| answers[query].is_none()).collect();
        let again: Vec<Query<'_>> = unsure.iter().map(|&query| queries[query]).collect();
        let mut scanned = self.exact.search(&again, filter, rows)?.into_iter();
        Ok(answers.into_iter().map(|answer| answer.or_else(|| scanned.next()).unwrap_or_default()).collect())
    }

    fn memory_bytes(&self) -> usize {
        self.figures().memory_bytes
    }
}

impl Selection {
    /// The candidates among rows of which some may be named twice.
    fn of(query: &Query<'_>, mut candidates: Vec<Candidate>) -> Candidates {
        candidates.sort_unstable_by_key(|candidate| (candidate.place, candidate.sequence));
        candidates.dedup_by_key(|candidate| (candidate.place, candidate.sequence));
        let mut selection = Self::new(query, query.k);
        for candidate in candidates {
            if candidate.upper >= selection.threshold() {
                selection.offer(candidate);
            }
        }
        selection.finish()
    }
}
