//! Whether a server is asked at all. Pure: the time and the chance come in.
//!
//! ```text
//!            5 failures in a row, or the connection is lost
//!   closed ────────────────────────────────────────────────► open ── its pause is over ─► probing
//!     ▲                                                       ▲                              │
//!     │                                                       └──────── the probe fails ─────┤
//!     └──────────────────────────────── the probe succeeds ─────────────────────────────────┘
//! ```
//!
//! Pauses double from [`PAUSE_MIN`] to [`PAUSE_MAX`], each shortened by chance by up to a half. They begin anew only once
//! a request has been answered: a server that connects and then stays silent is asked ever less. Requests that fail side by
//! side count once: one short stall is no row of failures, however many met it.

use std::time::{Duration, Instant};

/// So many failures in a row open it.
const FAILURES_MAX: u32 = 5;
/// The first pause before a probe.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What requests are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests go through.
    Closed,
    /// They are answered at once that there is nothing.
    Open,
    /// As open; whether the server answers again is being found out.
    Probing,
}

impl BreakerState {
    /// The name used in answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

/// One server's. It begins open and due: a connection is made by a probe.
#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerState,
    failures: u32,
    failed: Option<Instant>,
    pauses: u32,
    due: Instant,
    openings: u64,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: BreakerState::Open, failures: 0, failed: None, pauses: 0, due: now, openings: 0 }
    }

    pub(super) fn state(&self) -> BreakerState {
        self.state
    }

    /// How often it went from closed to open.
    pub(super) fn openings(&self) -> u64 {
        self.openings
    }

    /// A request was answered.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
        if self.state == BreakerState::Closed {
            self.pauses = 0;
        }
    }

    /// A request that was begun at `begun` was not, or not in time. True if that opened it. `chance` is from 0 to 1.
    pub(super) fn failed(&mut self, begun: Instant, now: Instant, chance: f64) -> bool {
        if self.failed.is_some_and(|failed| begun < failed) {
            return false;
        }
        self.failed = Some(now);
        self.failures += 1;
        self.failures >= FAILURES_MAX && self.lost(now, chance)
    }

    /// The connection is gone. True if that opened it.
    pub(super) fn lost(&mut self, now: Instant, chance: f64) -> bool {
        if self.state != BreakerState::Closed {
            return false;
        }
        self.openings += 1;
        self.open(now, chance);
        true
    }

    /// When the next probe is due; `None` while closed.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.state != BreakerState::Closed).then_some(self.due)
    }

    /// A probe begins.
    pub(super) fn probe(&mut self) {
        self.state = BreakerState::Probing;
    }

    /// It has ended.
    pub(super) fn probed(&mut self, success: bool, now: Instant, chance: f64) {
        match success {
            true => {
                self.state = BreakerState::Closed;
                self.failures = 0;
            }
            false => self.open(now, chance),
        }
    }

    fn open(&mut self, now: Instant, chance: f64) {
        let pause = PAUSE_MIN.saturating_mul(1 << self.pauses.min(16)).min(PAUSE_MAX);
        self.pauses += 1;
        self.failures = 0;
        self.due = now + pause.mul_f64(1.0 - chance / 2.0);
        self.state = BreakerState::Open;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(now);
        breaker.probed(true, now, 0.0);
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_a_probe_closes_it() {
        let now = Instant::now();
        let mut breaker = closed(now);
        for _ in 0..4 {
            assert!(!breaker.failed(now, now, 0.0));
        }
        breaker.answered();
        for _ in 0..4 {
            assert!(!breaker.failed(now, now, 0.0));
        }
        assert!(breaker.failed(now, now, 0.0));
        assert_eq!((breaker.state(), breaker.openings()), (BreakerState::Open, 1));
        assert_eq!(breaker.due(), Some(now + PAUSE_MIN));
        breaker.probe();
        breaker.probed(true, now, 0.0);
        assert_eq!((breaker.state(), breaker.due()), (BreakerState::Closed, None));
    }

    #[test]
    fn pauses_double_until_something_is_answered() {
        let now = Instant::now();
        let mut breaker = closed(now);
        breaker.lost(now, 0.0);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.push((breaker.due().unwrap() - now).as_millis());
            breaker.probe();
            breaker.probed(false, now, 0.0);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        breaker.probed(true, now, 0.0);
        assert!(breaker.lost(now, 0.0));
        assert_eq!(breaker.due(), Some(now + PAUSE_MAX), "connected, but nothing was answered");
        breaker.probed(true, now, 0.0);
        breaker.answered();
        breaker.lost(now, 1.0);
        assert_eq!(breaker.due(), Some(now + PAUSE_MIN / 2), "shortened by chance by up to a half");
    }

    #[test]
    fn what_fails_side_by_side_counts_once() {
        let now = Instant::now();
        let mut breaker = closed(now);
        let stall = now + Duration::from_millis(5);
        for _ in 0..100 {
            assert!(!breaker.failed(now, stall, 0.0));
        }
        for _ in 0..3 {
            assert!(!breaker.failed(stall, stall, 0.0));
        }
        assert!(breaker.failed(stall, stall, 0.0));
    }

    #[test]
    fn a_second_loss_opens_it_no_second_time() {
        let now = Instant::now();
        let mut breaker = closed(now);
        assert!(breaker.lost(now, 0.0) && !breaker.lost(now, 0.0));
        assert_eq!(breaker.openings(), 1);
    }
}
