//! The searcher whose rows are on a device.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::arithmetic::at_least;
use super::staging::Staging;
use super::{Accelerator, Batch, Fault, Scored, WORD_ROWS};
use crate::index::Row;
use crate::index::exact::Exact;
use crate::index::matrix::Matrix;
use crate::index::query::{Filter, Hit, Query, Rows, SearchError};
use crate::index::rescore::settle;
use crate::index::searcher::{Asked, Device, Meter, Method, Path, Searcher};
use crate::index::selection::{Candidate, Candidates};

/// Candidates beyond the hits that a query wants: enough that the bound rarely asks for more.
const MARGIN: usize = 8;
/// By how much more is asked for where that was too little.
const WIDEN_TIMES: usize = 4;
/// Bytes of rows that wait for a search before they go to an idle device without one.
const STAGED_BYTES: usize = 8 << 20;
/// Bytes of rows that may wait for a busy device.
const STAGED_BYTES_MAX: usize = 64 << 20;
/// Of places that are named, the processor looks at fewer than one in so many sooner than a bitmap is made.
const NARROW_ONE_IN: usize = 32;
/// Faults in a row after which a device is given up.
const FAULTS_MAX: usize = 2;
/// Queries whose hits one thread makes before another is worth its start.
const SETTLED_AT_ONCE: usize = 32;

/// A matrix's rows on a device, kept as the matrix is.
pub(in crate::index) struct Mirror {
    device: Device,
    matrix: Arc<Matrix>,
    /// Answers the queries that the device cannot, because too many rows are equally near.
    processor: Arc<Exact>,
    /// `None` once it is lost.
    accelerator: Mutex<Option<Box<dyn Accelerator>>>,
    /// Locked after the accelerator where both are.
    staging: Mutex<Staging>,
    lost: AtomicBool,
    faults_in_a_row: AtomicUsize,
    memory_bytes: AtomicUsize,
    /// Whether it answers whatever it can, however long it takes.
    preferred: bool,
    unfiltered: Meter,
    filtered: Meter,
}

impl Mirror {
    /// `matrix` has no rows yet.
    pub(super) fn new(
        device: Device,
        accelerator: Box<dyn Accelerator>,
        matrix: Arc<Matrix>,
        processor: Arc<Exact>,
    ) -> Self {
        Self {
            device,
            matrix,
            processor,
            accelerator: Mutex::new(Some(accelerator)),
            staging: Mutex::default(),
            lost: AtomicBool::new(false),
            faults_in_a_row: AtomicUsize::new(0),
            memory_bytes: AtomicUsize::new(0),
            preferred: false,
            unfiltered: Meter::default(),
            filtered: Meter::default(),
        }
    }

    /// As it is, but answering whatever it can.
    pub(super) fn first_choice(self) -> Self {
        Self { preferred: true, ..self }
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().expect("no thread panics while it holds what is on its way")
    }

    /// The device, for one thread at a time. Should one have panicked with it, it is lost.
    fn accelerator(&self) -> MutexGuard<'_, Option<Box<dyn Accelerator>>> {
        self.accelerator.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            let mut accelerator = poisoned.into_inner();
            *accelerator = None;
            self.lost.store(true, Ordering::Relaxed);
            accelerator
        })
    }

    /// Brings a place on the device to what the matrix has there. `row` is what was just set, if something was.
    fn follow(&self, place: u32, row: Option<&Row<'_>>) {
        if self.lost.load(Ordering::Relaxed) {
            return;
        }
        let staged = {
            let mut staging = self.staging();
            // Asked under the lock: whoever changes the place after this is staged after this.
            match (self.matrix.sequence_at(place), row) {
                (None, _) => staging.clear(place),
                (Some(sequence), Some(row)) if sequence == row.sequence => staging.put(place, row.unit),
                // A later one is there, and comes or came by itself.
                _ => {}
            }
            staging.bytes()
        };
        let guard = match staged {
            ..STAGED_BYTES => None,
            STAGED_BYTES..STAGED_BYTES_MAX => self.accelerator.try_lock().ok(),
            STAGED_BYTES_MAX.. => Some(self.accelerator()),
        };
        if let Some(mut guard) = guard
            && let Some(accelerator) = guard.as_mut()
            && let Err(fault) = self.flush(accelerator.as_mut())
        {
            self.give_up(&mut guard, &fault);
        }
    }

    /// Tells the device what has changed. Answers what no row on it is longer than.
    fn flush(&self, accelerator: &mut dyn Accelerator) -> Result<f64, Fault> {
        let (changes, length_max) = {
            let mut staging = self.staging();
            (staging.take(), staging.length_max())
        };
        if changes.room > accelerator.capacity() {
            accelerator.grow(changes.room)?;
        }
        if !changes.places.is_empty() {
            accelerator.write(&changes.places, &changes.rows)?;
        }
        if !changes.words.is_empty() {
            accelerator.allow(changes.first_word, &changes.words)?;
        }
        self.memory_bytes.store(accelerator.memory_bytes(), Ordering::Relaxed);
        Ok(length_max)
    }

    /// The device is not asked again, and its memory is free.
    fn give_up(&self, accelerator: &mut Option<Box<dyn Accelerator>>, fault: &Fault) {
        *accelerator = None;
        self.lost.store(true, Ordering::Relaxed);
        self.memory_bytes.store(0, Ordering::Relaxed);
        *self.staging() = Staging::default();
        let device = self.device.name();
        tracing::error!(device, %fault, "the search's device is given up: the CPU searches until a restart");
    }

    fn failed(&self, fault: &Fault) -> SearchError {
        SearchError::Device { device: self.device, message: fault.to_string() }
    }

    /// The device's candidates for each query, and how long it took.
    fn candidates(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        keep: usize,
    ) -> Result<(Vec<Candidates>, Duration), SearchError> {
        let mut guard = self.accelerator();
        let Some(accelerator) = guard.as_mut() else {
            return Err(self.failed(&Fault("it was given up".to_owned())));
        };
        let length_max = match self.flush(accelerator.as_mut()) {
            Ok(length_max) => length_max,
            Err(fault) => {
                self.give_up(&mut guard, &fault);
                return Err(self.failed(&fault));
            }
        };
        let started = Instant::now();
        let rounded = accelerator.arithmetic().round(queries, self.matrix.dims());
        let errors: Vec<f64> = (0..queries.len()).map(|query| rounded.error(query, length_max)).collect();
        let ceilings: Vec<f32> = queries.iter().zip(&errors).map(|(query, error)| ceiling(query, *error)).collect();
        let only = (!filter.is_open()).then(|| {
            let mut words = vec![0; accelerator.capacity() / WORD_ROWS];
            self.matrix.admit(filter, &mut words);
            words
        });
        let batch = Batch { vectors: &rounded.vectors, ceilings: &ceilings, keep, only: only.as_deref() };
        let nearest = match accelerator.nearest(&batch) {
            Ok(nearest) => nearest,
            Err(fault) => {
                if self.faults_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= FAULTS_MAX {
                    self.give_up(&mut guard, &fault);
                }
                return Err(self.failed(&fault));
            }
        };
        let took = started.elapsed();
        drop(guard);
        self.faults_in_a_row.store(0, Ordering::Relaxed);
        let candidates = nearest.iter().zip(errors).map(|(scored, error)| self.judge(scored, filter, keep, error));
        Ok((candidates.collect(), took))
    }

    /// What is known of a query's rows by their scores, which are at most `error` off.
    fn judge(&self, scored: &[Scored], filter: &Filter<'_>, keep: usize, error: f64) -> Candidates {
        let places: Vec<u32> = scored.iter().map(|scored| scored.place).collect();
        let upper = |score: f32| at_least(f64::from(score) + error);
        let lower = |score: f32| -at_least(error - f64::from(score));
        // A place may have another row by now, or one that has expired: neither is in the answer nor keeps another out.
        let found = scored.iter().zip(self.matrix.facts_of(&places, filter)).filter_map(|(scored, facts)| {
            let facts = facts?;
            let Scored { place, score } = *scored;
            let (lower, upper) = (lower(score), upper(score));
            Some(Candidate { lower, upper, place, sequence: facts.sequence, key: facts.key })
        });
        let least = scored.iter().map(|scored| scored.score).min_by(f32::total_cmp);
        let dropped_below = match least {
            Some(least) if scored.len() >= keep => upper(least).next_up(),
            _ => f32::NEG_INFINITY,
        };
        Candidates { found: found.collect(), dropped_below }
    }

    fn meter(&self, filter: &Filter<'_>) -> &Meter {
        if filter.is_open() { &self.unfiltered } else { &self.filtered }
    }

    /// The rows that are read, once for each query.
    fn units(&self, queries: usize) -> f64 {
        (self.matrix.places() * queries) as f64
    }
}

/// The score above which a row is certainly before where a page begins.
fn ceiling(query: &Query<'_>, error: f64) -> f32 {
    query.after.map_or(f32::INFINITY, |after| at_least(f64::from(after.similarity) + error))
}

/// The hits of each query; `None` for those that need more candidates.
fn settle_all(queries: &[Query<'_>], candidates: Vec<Candidates>, rows: &dyn Rows) -> Vec<Option<Vec<Hit>>> {
    let of = |queries: &[Query<'_>], candidates: Vec<Candidates>| -> Vec<Option<Vec<Hit>>> {
        queries.iter().zip(candidates).map(|(query, candidates)| settle(query, candidates, rows)).collect()
    };
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = queries.len().div_ceil(SETTLED_AT_ONCE).min(processors);
    if threads <= 1 {
        return of(queries, candidates);
    }
    let share = queries.len().div_ceil(threads);
    let mut rest = candidates.into_iter();
    thread::scope(|scope| {
        let shares: Vec<_> = queries
            .chunks(share)
            .map(|queries| {
                let candidates = rest.by_ref().take(queries.len()).collect();
                scope.spawn(move || of(queries, candidates))
            })
            .collect();
        shares.into_iter().flat_map(|share| share.join().expect("hits are made without a panic")).collect()
    })
}

impl Searcher for Mirror {
    fn path(&self) -> Path {
        Path { method: Method::Exact, device: self.device }
    }

    fn set(&self, row: &Row<'_>) {
        self.follow(row.place, Some(row));
    }

    fn clear(&self, place: u32) {
        self.follow(place, None);
    }

    fn serves(&self, asked: &Asked<'_>) -> bool {
        let narrow = asked.filter.places.is_some_and(|places| places.len() * NARROW_ONE_IN < self.matrix.places());
        !narrow && !self.lost.load(Ordering::Relaxed)
    }

    fn preferred(&self) -> bool {
        self.preferred
    }

    fn estimate(&self, asked: &Asked<'_>) -> Option<Duration> {
        self.meter(asked.filter).estimate(asked.queries, self.units(asked.queries))
    }

    fn search(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        rows: &dyn Rows,
    ) -> Result<Vec<Vec<Hit>>, SearchError> {
        let keep_max = self.accelerator().as_ref().map_or(0, |accelerator| accelerator.keep_max());
        let mut answers = vec![Vec::new(); queries.len()];
        let mut open: Vec<usize> = (0..queries.len()).collect();
        let mut keep = queries.iter().map(|query| query.k).max().unwrap_or(0) + MARGIN;
        while !open.is_empty() {
            let asked: Vec<Query<'_>> = open.iter().map(|&index| queries[index]).collect();
            let (candidates, took) = self.candidates(&asked, filter, keep.min(keep_max))?;
            let started = Instant::now();
            let mut settled = settle_all(&asked, candidates, rows).into_iter();
            self.meter(filter).note(asked.len(), self.units(asked.len()), took + started.elapsed());
            open.retain(|&index| {
                let hits = settled.next().expect("each query is settled or not");
                hits.map(|hits| answers[index] = hits).is_none()
            });
            if keep >= keep_max {
                break;
            }
            keep *= WIDEN_TIMES;
        }
        if !open.is_empty() {
            let left: Vec<Query<'_>> = open.iter().map(|&index| queries[index]).collect();
            for (index, hits) in open.into_iter().zip(self.processor.search(&left, filter, rows)?) {
                answers[index] = hits;
            }
        }
        Ok(answers)
    }

    fn memory_bytes(&self) -> usize {
        self.memory_bytes.load(Ordering::Relaxed)
    }
}
