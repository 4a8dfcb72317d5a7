//! What was answered lately: counts by status over the last minute, quarter of an hour and hour.
//!
//! The counters only grow; here is kept what they showed at the start of each of the last 360 ticks of ten seconds. A
//! window is the difference between now and then, so answering a request costs no second count: one relaxed load tells
//! that this tick is noted already. Who notes a new tick does so for those that passed in silence too. What others
//! count in the same instant may fall into the tick before.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::domain::Status;

/// Counts by status, in the order of [`Status::ALL`].
pub(super) type Counts = [u64; Status::ALL.len()];

/// How long a tick is, in seconds.
pub(super) const TICK_SECONDS: u64 = 10;

/// The windows that are told: their names, and how many seconds they have.
pub(super) const WINDOWS: [(&str, u64); 3] = [("1m", 60), ("15m", 900), ("1h", 3600)];

/// An hour of ticks, and the one that is under way.
const TICKS: usize = 361;

pub(super) struct Windows {
    /// The last tick that is noted.
    noted: AtomicU64,
    /// The counts at the start of a tick, at its number modulo their count.
    starts: Box<[[AtomicU64; Status::ALL.len()]]>,
}

impl Windows {
    /// Starts at tick 0 with nothing counted.
    pub(super) fn new() -> Self {
        Self { noted: AtomicU64::new(0), starts: (0..TICKS).map(|_| Default::default()).collect() }
    }

    /// Notes that a tick has begun, if nobody has. To be called before anything of it is counted.
    pub(super) fn observe(&self, tick: u64, counts: impl FnOnce() -> Counts) {
        if self.noted.load(Relaxed) < tick {
            self.note(tick, &counts());
        }
    }

    #[cold]
    fn note(&self, tick: u64, counts: &Counts) {
        let before = self.noted.fetch_max(tick, Relaxed);
        // Of a silence longer than an hour the last hour is enough.
        let first = (before + 1).max((tick + 1).saturating_sub(TICKS as u64));
        for silent in first..=tick {
            for (start, count) in self.starts[silent as usize % TICKS].iter().zip(counts) {
                start.store(*count, Relaxed);
            }
        }
    }

    /// What was counted in the last `seconds` before `tick`, that tick included, given what is counted now.
    pub(super) fn last(&self, seconds: u64, tick: u64, counts: &Counts) -> Counts {
        self.observe(tick, || *counts);
        let ticks = (seconds / TICK_SECONDS).min(TICKS as u64 - 1);
        let start = match tick.checked_sub(ticks) {
            Some(first) if first > 0 => &self.starts[first as usize % TICKS],
            // Since the start.
            _ => return *counts,
        };
        let mut difference = *counts;
        for (count, start) in difference.iter_mut().zip(start) {
            *count = count.saturating_sub(start.load(Relaxed));
        }
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hits only: what a plain list of events says for the same window.
    #[test]
    fn windows_count_what_a_list_of_events_says() {
        let windows = Windows::new();
        let (mut events, mut total) = (Vec::new(), 0_u64);
        let counts = |total: u64| [total, 0, 0, 0, 0, 0];
        // Bursts, silences shorter and longer than the ring, and a silence at the end.
        for (tick, count) in [(0, 5), (1, 7), (3, 1), (9, 4), (95, 2), (96, 3), (400, 8), (401, 1), (900, 6), (903, 2)]
        {
            windows.observe(tick, || counts(total));
            total += count;
            events.push((tick, count));
            for now in [tick, tick + 2] {
                for (name, seconds) in WINDOWS {
                    let first = (now + 1).saturating_sub(seconds / TICK_SECONDS + 1);
                    let expected: u64 = events.iter().filter(|(at, _)| *at >= first).map(|(_, count)| count).sum();
                    // The look ahead must not be noted, or the next event would lie in the past.
                    let looked = Windows { noted: AtomicU64::new(windows.noted.load(Relaxed)), starts: copy(&windows) };
                    assert_eq!(looked.last(seconds, now, &counts(total)), counts(expected), "{name} at {now}");
                }
            }
        }
    }

    fn copy(windows: &Windows) -> Box<[[AtomicU64; Status::ALL.len()]]> {
        let start =
            |start: &[AtomicU64; Status::ALL.len()]| start.each_ref().map(|count| AtomicU64::new(count.load(Relaxed)));
        windows.starts.iter().map(start).collect()
    }

    #[test]
    fn what_is_older_than_the_window_leaves_it() {
        let windows = Windows::new();
        windows.observe(1, || [0; 6]);
        let counts = [4, 0, 0, 0, 0, 2];
        assert_eq!(windows.last(60, 1, &counts), counts);
        assert_eq!(windows.last(60, 7, &counts), counts);
        assert_eq!(windows.last(60, 8, &counts), [0; 6]);
        assert_eq!(windows.last(900, 8, &counts), counts);
    }
}
