//! How long answers of vectors took in the last minute, those from the cache and those that the model computed apart.
//!
//! The histograms of `/metrics` are for Prometheus: their classes are a factor of four wide, and count from the start. Here
//! classes are an eighth of an octave wide, so that a quantile is right to a sixteenth, and counting is one relaxed add. Who
//! asks gets the difference to what was counted when the minute began.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How long a tick is, in seconds.
const TICK_SECONDS: u64 = 10;

/// How many of them the window has, beside the one that is under way.
const TICKS: u64 = 6;

/// Classes an octave has, as a power of two.
const CLASS_BITS: u32 = 3;

/// Durations below 2^10 ns are in the first class; those from 2^37 ns (137 s) on in the last.
const OCTAVES: std::ops::Range<u32> = 10..37;

const CLASSES: usize = ((OCTAVES.end - OCTAVES.start) as usize) << CLASS_BITS;

type Counts = [u64; CLASSES];

/// Durations of the last minute, of one kind of answers.
struct Recent {
    counts: [AtomicU64; CLASSES],
    /// The last tick that is noted.
    noted: AtomicU64,
    /// What was counted when a tick began, the oldest first.
    starts: Mutex<VecDeque<(u64, Box<Counts>)>>,
}

/// Durations of answers of vectors.
pub(super) struct Latency {
    hits: Recent,
    misses: Recent,
    started: Instant,
}

/// What they were in the last minute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Quantiles {
    /// Requests answered.
    requests: u64,
    /// What half of them took at most, in milliseconds; `None` if there were none.
    p50_ms: Option<f64>,
    /// What 99 of 100 took at most.
    p99_ms: Option<f64>,
}

/// Both kinds of answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Latencies {
    /// How long the window is.
    seconds: u64,
    /// Requests all of whose inputs were cached.
    hits: Quantiles,
    /// The others.
    misses: Quantiles,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self { hits: Recent::new(), misses: Recent::new(), started: Instant::now() }
    }

    /// Counts an answer of vectors.
    pub(super) fn observe(&self, all_hit: bool, took: Duration) {
        let recent = if all_hit { &self.hits } else { &self.misses };
        recent.observe(self.tick(), took);
    }

    /// The last minute's quantiles.
    pub(super) fn last_minute(&self) -> Latencies {
        let tick = self.tick();
        let (hits, misses) = (Quantiles::of(&self.hits.last(tick)), Quantiles::of(&self.misses.last(tick)));
        Latencies { seconds: TICKS * TICK_SECONDS, hits, misses }
    }

    fn tick(&self) -> u64 {
        self.started.elapsed().as_secs() / TICK_SECONDS
    }
}

impl Recent {
    fn new() -> Self {
        let starts = VecDeque::from([(0, Box::new([0; CLASSES]))]);
        Self { counts: [const { AtomicU64::new(0) }; CLASSES], noted: AtomicU64::new(0), starts: Mutex::new(starts) }
    }

    fn observe(&self, tick: u64, took: Duration) {
        if self.noted.load(Relaxed) < tick {
            drop(self.note(tick));
        }
        self.counts[class_of(took)].fetch_add(1, Relaxed);
    }

    /// Notes that a tick has begun, unless somebody has.
    #[cold]
    fn note(&self, tick: u64) -> MutexGuard<'_, VecDeque<(u64, Box<Counts>)>> {
        // What is kept is whole at every moment: it is changed by whole elements.
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.noted.fetch_max(tick, Relaxed);
        if before < tick {
            // Nothing was counted in the ticks between: the first of them began with what is counted now.
            starts.push_back((before + 1, Box::new(self.read())));
        }
        // One that is as old as the window, or older, is where the window begins; those before it are past.
        while starts.get(1).is_some_and(|&(second, _)| second + TICKS <= tick) {
            starts.pop_front();
        }
        starts
    }

    /// What was counted within the window that ends at a tick.
    fn last(&self, tick: u64) -> Box<Counts> {
        let starts = self.note(tick);
        let mut counts = Box::new(self.read());
        if let Some((_, before)) = starts.front() {
            counts.iter_mut().zip(before.iter()).for_each(|(count, before)| *count -= before);
        }
        counts
    }

    fn read(&self) -> Counts {
        self.counts.each_ref().map(|count| count.load(Relaxed))
    }
}

impl Quantiles {
    fn of(counts: &Counts) -> Self {
        let requests = counts.iter().sum();
        let quantile = |share: f64| {
            let rank = (requests as f64 * share).ceil().max(1.0) as u64;
            let mut below = 0;
            let class = counts.iter().position(|count| {
                below += count;
                below >= rank
            });
            // To a microsecond: more would be pretence.
            class.map(|class| (middle_ms(class) * 1000.0).round() / 1000.0)
        };
        let known = requests > 0;
        Self {
            requests,
            p50_ms: known.then(|| quantile(0.5)).flatten(),
            p99_ms: known.then(|| quantile(0.99)).flatten(),
        }
    }
}

/// The class of a duration: its octave, and the bits that follow the first one.
fn class_of(took: Duration) -> usize {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1 << OCTAVES.start);
    let octave = nanos.ilog2();
    let part = (nanos >> (octave - CLASS_BITS)) & ((1 << CLASS_BITS) - 1);
    let class = ((u64::from(octave - OCTAVES.start)) << CLASS_BITS) + part;
    (class as usize).min(CLASSES - 1)
}

/// The middle of a class, in milliseconds.
fn middle_ms(class: usize) -> f64 {
    let octave = OCTAVES.start + (class >> CLASS_BITS) as u32;
    let part = (class & ((1 << CLASS_BITS) - 1)) as f64;
    let octave_ns = (1_u64 << octave) as f64;
    octave_ns * (1.0 + (part + 0.5) / f64::from(1 << CLASS_BITS)) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(found: Option<f64>, expected_ms: f64) -> bool {
        found.is_some_and(|found| (found / expected_ms - 1.0).abs() <= 1.0 / 16.0)
    }

    #[test]
    fn a_duration_is_told_to_a_sixteenth_whatever_its_size() {
        let mut nanos = 1_100;
        while nanos < 100_000_000_000_u64 {
            let took = Duration::from_nanos(nanos);
            assert!(within(Some(middle_ms(class_of(took))), nanos as f64 / 1e6), "{took:?}");
            nanos += nanos / 7;
        }
        assert_eq!((class_of(Duration::ZERO), class_of(Duration::MAX)), (0, CLASSES - 1));
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted() {
        let recent = Recent::new();
        assert_eq!(Quantiles::of(&recent.last(0)), Quantiles { requests: 0, p50_ms: None, p99_ms: None });
        (1..=1000).for_each(|n| recent.observe(0, Duration::from_micros(n * 10)));
        let found = Quantiles::of(&recent.last(0));
        assert!(found.requests == 1000 && within(found.p50_ms, 5.0) && within(found.p99_ms, 9.9), "{found:?}");
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten_also_after_silence() {
        let recent = Recent::new();
        let count = |tick| recent.last(tick).iter().sum::<u64>();
        recent.observe(0, Duration::from_millis(1));
        recent.observe(3, Duration::from_millis(1));
        recent.observe(5, Duration::from_millis(1));
        assert_eq!((count(5), count(6)), (3, 3));
        // From here on the window begins after what tick 0 has counted.
        assert_eq!((count(8), count(10), count(11), count(500)), (2, 1, 1, 0));
        recent.observe(501, Duration::from_millis(1));
        assert_eq!((count(501), count(506), count(508)), (1, 1, 0));
        assert!(recent.starts.lock().unwrap().len() <= TICKS as usize + 2);
    }
}
