//! The thread that keeps a graph: it builds, merges and saves, one thing at a time, while searches go on.
//!
//! ```text
//! start ─► snapshots ─► ┌► nothing to do: wait for changes
//!                       └─ the tail is worth a segment, or a quarter of a segment is dead:
//!                            copy the rows, those of smaller segments with them ─► build ─► measure
//!                            ─► walk it ─► cover its rows ─► forget the merged ─► save
//! ```
//!
//! A segment is worth it where a walk is quicker than a scan of its rows. What a scan takes a row, and a walk a row that it
//! compares, is measured on the rows; how many a walk compares is known of the segments built, and at first supposed.
//! A merge takes in segments of up to twice its size, so there are few, and a row is built into one a few times at most.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::super::chunk::Cover;
use super::super::codes::stride;
use super::super::exact::Exact;
use super::super::kernel::{BLOCK_ROWS, Block};
use super::super::lines::Lines;
use super::super::matrix::Copies;
use super::build::{self, BuildError};
use super::calibrate::calibrate;
use super::segment::{Breadths, LINKS, NODES_MAX, Segment};
use super::snapshot::Snapshots;
use super::{GraphOptions, Segments};
use crate::urgency::{BACKGROUND, stand_back};

/// Rows that speeds are measured on; below it no graph is thought of.
const PROBE_ROWS: usize = 4096;
/// How often speeds are measured.
const PROBES: usize = 7;
/// Rows that are compared at a time then.
const HOP: usize = LINKS / 2;
/// Rows that a walk compares, a doubling of the segment's rows, as long as no segment says it.
const COMPARED_A_DOUBLING: f64 = 120.0;
/// A segment is built anew when one row in so many of it is dead.
const DEAD_ONE_IN: usize = 4;

/// The thread's handle.
pub(super) struct Upkeep {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    exact: Arc<Exact>,
    segments: Arc<Segments>,
    snapshots: Option<Snapshots>,
    rows_min: Option<usize>,
    /// From how many rows of the tail on it may be worth a segment.
    tail_worth: AtomicUsize,
    stop: AtomicBool,
    /// How often rows that are gone had to be forgotten: what was copied before that is not built.
    forgotten: AtomicUsize,
    /// Held by whoever changes which segments and files there are.
    placing: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Something may have to be done.
    due: bool,
    busy: bool,
}

impl Upkeep {
    pub(super) fn new(exact: Arc<Exact>, segments: Arc<Segments>, options: GraphOptions) -> Self {
        let GraphOptions { folder, rows_min } = options;
        let shared = Arc::new(Shared {
            snapshots: folder.map(|folder| Snapshots::new(folder, exact.matrix.dims())),
            exact,
            segments,
            rows_min,
            tail_worth: AtomicUsize::new(rows_min.unwrap_or(PROBE_ROWS)),
            stop: AtomicBool::new(false),
            forgotten: AtomicUsize::new(0),
            placing: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        Self { shared, thread: Mutex::default() }
    }

    pub(super) fn start(&self) {
        let mut thread = self.thread.lock().expect("no thread panics while it holds the handle");
        if thread.is_some() {
            return;
        }
        self.shared.state().busy = true;
        let shared = Arc::clone(&self.shared);
        match thread::Builder::new().name("index-graph".to_owned()).spawn(move || shared.run()) {
            Ok(handle) => *thread = Some(handle),
            Err(error) => {
                self.shared.state().busy = false;
                tracing::warn!(%error, "no graph is kept, and all searches are exact: its thread cannot be started");
            }
        }
    }

    /// Notes a change of the rows.
    pub(super) fn changed(&self, uncovered: Cover) {
        let shared = &self.shared;
        let is_worn = uncovered.is_some_and(|number| {
            let segments = shared.segments.all.read().expect("no thread panics while it holds the segments");
            segments.iter().find(|(other, _)| *other == number).is_some_and(|(_, segment)| {
                segment.bury(1);
                is_worn(segment)
            })
        });
        if is_worn || shared.exact.matrix.tail() >= shared.tail_worth.load(Ordering::Relaxed) {
            let mut state = shared.state();
            if !state.due {
                state.due = true;
                shared.changed.notify_all();
            }
        }
    }

    /// Gives up every segment that has a row that is gone, and what is being built. The rows that are there are scanned until they
    /// are built into another. Answers how many segments that were, and which files are of no use now.
    pub(super) fn forget_gone(&self) -> (usize, Vec<PathBuf>) {
        let shared = &self.shared;
        shared.forgotten.fetch_add(1, Ordering::SeqCst);
        let (count, files) = {
            let _placing = shared.placing();
            let (worn, whole): (Vec<_>, Vec<_>) =
                shared.segments.list().into_iter().partition(|(_, segment)| segment.dead() > 0);
            for (number, segment) in &worn {
                shared.uncover(*number, segment);
            }
            let numbers: Vec<NonZero<u32>> = whole.iter().map(|(number, _)| *number).collect();
            shared.segments.change(|all| all.retain(|(number, _)| numbers.contains(number)));
            let files = shared.snapshots.as_ref().map(|snapshots| snapshots.files_but(&numbers));
            (worn.len(), files.unwrap_or_default())
        };
        shared.state().due = true;
        shared.changed.notify_all();
        (count, files)
    }

    pub(super) fn wait(&self) {
        let mut state = self.shared.state();
        while state.due && self.thread.lock().is_ok_and(|thread| thread.is_some()) || state.busy {
            state = self.shared.changed.wait(state).expect("no thread panics while it holds the state");
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(self.shared.state());
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().ok().and_then(|mut thread| thread.take()) {
            // It has panicked if it has not ended; the message is on the standard error output.
            let _ = thread.join();
        }
    }
}

fn is_worn(segment: &Segment) -> bool {
    segment.dead() * DEAD_ONE_IN > segment.nodes()
}

/// What was measured: seconds a row of a scan, and of a walk.
#[derive(Clone, Copy)]
struct Speeds {
    scan: f64,
    walk: f64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Whether what was copied when `forgotten` was this may still be built.
    fn builds_on(&self, forgotten: usize) -> bool {
        self.goes_on() && self.forgotten.load(Ordering::SeqCst) == forgotten
    }

    fn placing(&self) -> MutexGuard<'_, ()> {
        self.placing.lock().expect("no thread panics while it holds the segments' places")
    }

    /// Gives a segment's rows back to the tail.
    fn uncover(&self, number: NonZero<u32>, segment: &Segment) {
        for node in 0..segment.nodes() as u32 {
            self.exact.matrix.cover(None, segment.row(node), |cover| cover == Some(number));
        }
    }

    fn run(&self) {
        stand_back(BACKGROUND);
        self.restore();
        let mut compared = COMPARED_A_DOUBLING;
        while self.goes_on() {
            self.state().due = false;
            if self.keep(&mut compared) {
                continue;
            }
            let mut state = self.state();
            while !state.due && self.goes_on() {
                state.busy = false;
                self.changed.notify_all();
                state = self.changed.wait(state).expect("no thread panics while it holds the state");
            }
            state.busy = true;
        }
        self.state().busy = false;
        self.changed.notify_all();
    }

    /// Takes in what snapshots have. The latest first: it has the rows of those that it was merged from.
    fn restore(&self) {
        let Some(snapshots) = &self.snapshots else { return };
        let _placing = self.placing();
        for (number, segment) in snapshots.load() {
            self.walk_and_cover(number, Arc::new(segment), |_| false);
        }
        let segments = self.segments.list();
        for (number, segment) in &segments {
            tracing::info!(
                number,
                rows = segment.nodes(),
                gone = segment.dead(),
                "took a graph's segment from its snapshot"
            );
        }
    }

    /// Has a segment walked, then its rows covered by it: in between they are found twice, and never not at all.
    fn walk_and_cover(&self, number: NonZero<u32>, segment: Arc<Segment>, gives_up: impl Fn(Cover) -> bool) {
        self.segments.change(|all| all.push((number, Arc::clone(&segment))));
        let gone = (0..segment.nodes() as u32)
            .filter(|&node| !self.exact.matrix.cover(Some(number), segment.row(node), &gives_up))
            .count();
        segment.bury(gone);
    }

    /// Builds what is to be built. Returns whether anything was.
    fn keep(&self, compared: &mut f64) -> bool {
        let matrix = &self.exact.matrix;
        let tail = matrix.tail();
        let (mut merged, mut others): (Vec<_>, Vec<_>) =
            self.segments.list().into_iter().partition(|(_, segment)| is_worn(segment));
        if merged.is_empty() && tail < self.tail_worth.load(Ordering::Relaxed) {
            return false;
        }
        let Some(worth) = self.rows_min.or_else(|| self.speeds().map(|speeds| speeds.worth(*compared))) else {
            return false;
        };
        self.tail_worth.store(worth, Ordering::Relaxed);
        let living = |segment: &Segment| segment.nodes().saturating_sub(segment.dead());
        let mut rows = tail + merged.iter().map(|(_, segment)| living(segment)).sum::<usize>();
        if merged.is_empty() && tail < worth {
            return false;
        }
        others.sort_by_key(|(_, segment)| living(segment));
        for (number, segment) in others {
            if living(&segment) <= 2 * rows {
                rows += living(&segment);
                merged.push((number, segment));
            }
        }
        let numbers: Vec<NonZero<u32>> = merged.iter().map(|(number, _)| *number).collect();
        let is_merged = |cover: Cover| cover.is_some_and(|number| numbers.contains(&number));
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        if rows >= worth {
            match self.build(forgotten, |cover| cover.is_none() || is_merged(cover)) {
                Ok((segment, of_walks)) => {
                    *compared = of_walks / (segment.nodes().max(2) as f64).log2();
                    self.put_in_place(forgotten, segment, &numbers, is_merged);
                    return true;
                }
                Err(BuildError::GivenUp) => return self.goes_on(),
                Err(error) => {
                    tracing::warn!(%error, "rows stay without a graph, and are scanned");
                    self.tail_worth.store(tail.saturating_mul(2).max(PROBE_ROWS), Ordering::Relaxed);
                }
            }
        }
        // Not worth a graph, or not to be had: the living rows of what is worn go back to the tail.
        let _placing = self.placing();
        for (number, segment) in merged.iter().filter(|(_, segment)| is_worn(segment)) {
            self.uncover(*number, segment);
            self.forget(&[*number]);
        }
        false
    }

    /// A segment of the rows that are wanted, and how many rows walks for few hits compare.
    fn build(&self, forgotten: usize, wants: impl Fn(Cover) -> bool) -> Result<(Segment, f64), BuildError> {
        let started = Instant::now();
        let (dims, kernel) = (self.exact.matrix.dims(), self.exact.kernel);
        let rows = self.exact.matrix.copies(NODES_MAX, wants);
        let parts = build::build(&rows, stride(dims), kernel, || self.builds_on(forgotten))?;
        drop(rows);
        let mut segment = Segment::new(parts, stride(dims), Breadths { few: 0, many: 0 });
        let measured = calibrate(&segment, dims, kernel, || self.builds_on(forgotten)).ok_or(BuildError::GivenUp)?;
        segment.breadths = measured.breadths;
        tracing::info!(
            rows = segment.nodes(),
            bytes = segment.memory_bytes(),
            breadth = measured.breadths.few,
            took_ms = started.elapsed().as_millis() as u64,
            "built a segment of the graph"
        );
        Ok((segment, measured.compared))
    }

    fn put_in_place(
        &self,
        forgotten: usize,
        segment: Segment,
        merged: &[NonZero<u32>],
        is_merged: impl Fn(Cover) -> bool,
    ) {
        let _placing = self.placing();
        if !self.builds_on(forgotten) {
            // It may have a row that must not be kept; it is built again, of what is there.
            return;
        }
        let last = self.segments.list().iter().map(|(number, _)| number.get()).max().unwrap_or(0);
        let last = last.max(self.snapshots.as_ref().map_or(0, Snapshots::last));
        let number = NonZero::<u32>::MIN.saturating_add(last);
        let segment = Arc::new(segment);
        self.walk_and_cover(number, Arc::clone(&segment), is_merged);
        if let Some(snapshots) = &self.snapshots
            && let Err(error) = snapshots.save(number, &segment)
        {
            tracing::warn!(%error, "a segment of the graph is not saved, and will be built again after a restart");
        }
        self.forget(merged);
    }

    fn forget(&self, numbers: &[NonZero<u32>]) {
        self.segments.change(|all| all.retain(|(number, _)| !numbers.contains(number)));
        if let Some(snapshots) = &self.snapshots {
            numbers.iter().for_each(|&number| snapshots.remove(number));
        }
    }

    /// What scans and walks take here and now; `None` as long as there are few rows.
    fn speeds(&self) -> Option<Speeds> {
        let stride = stride(self.exact.matrix.dims());
        let Copies { codes, places, .. } = self.exact.matrix.copies(PROBE_ROWS * 4, |_| true);
        let count = places.len();
        if count < PROBE_ROWS {
            return None;
        }
        let mut query = Lines::<i16>::zeroed(stride);
        query.as_mut_slice().iter_mut().zip(&codes).for_each(|(word, &code)| *word = i16::from(code));
        let (query, kernel) = (query.as_slice(), self.exact.kernel);
        // As walks come by them: here and there, half of the links of a node new.
        let mut state = 1u64;
        let mut any = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as usize % count) as u32
        };
        let hops: Vec<[u32; HOP]> = (0..count / HOP).map(|_| std::array::from_fn(|_| any())).collect();
        let rows: Vec<u16> = (0..BLOCK_ROWS as u16).collect();
        let mut products = [[0; BLOCK_ROWS]];
        let mut nearest = 0;
        let mut best = Speeds { scan: f64::MAX, walk: f64::MAX };
        // The thread may have to wait for the processor: the quickest of a few counts.
        for _ in 0..PROBES {
            let started = Instant::now();
            for codes in codes.chunks(BLOCK_ROWS * stride) {
                let block = Block { codes, stride, rows: &rows[..codes.len() / stride], next: &[] };
                kernel.multiply(block, query, &mut products);
                nearest = products[0].iter().fold(nearest, |nearest, &product| nearest.max(product));
            }
            best.scan = best.scan.min(started.elapsed().as_secs_f64() / count as f64);
            let started = Instant::now();
            for hop in &hops {
                kernel.gather(&codes, hop, query, &mut products[0]);
                nearest = products[0][..HOP].iter().fold(nearest, |nearest, &product| nearest.max(product));
            }
            best.walk = best.walk.min(started.elapsed().as_secs_f64() / (hops.len() * HOP) as f64);
        }
        std::hint::black_box(nearest);
        Some(best)
    }
}

impl Speeds {
    /// From how many rows on a walk is quicker than a scan, if it compares so many rows for each doubling of them.
    fn worth(self, compared: f64) -> usize {
        let mut rows = PROBE_ROWS;
        while rows as f64 * self.scan < compared * (rows as f64).log2() * self.walk && rows < NODES_MAX {
            rows += rows / 8;
        }
        rows
    }
}
