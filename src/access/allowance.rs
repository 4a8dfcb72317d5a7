//! How much of something a tenant may have a second, kept as one number: until when what it has had is paid for.
//!
//! ```text
//!            now                    paid until
//! ────────────┼──── spent ──────────────┼──── left ────┼
//!             └────────────── one second ──────────────┘
//! ```
//!
//! That is the generic cell rate algorithm: a second's worth may come at once, and then no more than the rate. Own code, because what a
//! request costs in tokens is known only once it is answered: it is charged afterwards, and may run into debt, which must be paid before
//! the next. `governor` and its like ask for the price beforehand, and take none above a second's worth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What may be had at once: a second's worth.
const WINDOW_NS: u64 = 1_000_000_000;

/// A rate, and what of it is spent. Times are since any one moment.
#[derive(Debug)]
pub(super) struct Allowance {
    per_second: u64,
    paid_until_ns: AtomicU64,
}

impl Allowance {
    pub(super) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.clamp(1, WINDOW_NS), paid_until_ns: AtomicU64::new(0) }
    }

    pub(super) fn per_second(&self) -> u64 {
        self.per_second
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there is none left: how long until there is.
    pub(super) fn take(&self, now: Duration) -> Result<(), Duration> {
        let now_ns = nanoseconds(now);
        let price = self.price(1);
        let paid = self.paid_until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_until| {
            let after = paid_until.max(now_ns) + price;
            (after <= now_ns + WINDOW_NS).then_some(after)
        });
        match paid {
            Ok(_) => Ok(()),
            Err(paid_until) => Err(Duration::from_nanos((paid_until + price).saturating_sub(now_ns + WINDOW_NS))),
        }
    }

    /// Whether any is left.
    ///
    /// # Errors
    /// When none is: how long until there is.
    pub(super) fn check(&self, now: Duration) -> Result<(), Duration> {
        match self.spent_ns(now).checked_sub(WINDOW_NS) {
            None => Ok(()),
            Some(debt) => Err(Duration::from_nanos(debt + self.price(1))),
        }
    }

    /// Takes so many, whether or not they are left.
    pub(super) fn charge(&self, count: u64, now: Duration) {
        let (now_ns, price) = (nanoseconds(now), self.price(count));
        let add = |paid_until: u64| Some(paid_until.max(now_ns).saturating_add(price));
        self.paid_until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).expect("it always adds");
    }

    /// How many are left.
    pub(super) fn left(&self, now: Duration) -> u64 {
        let left_ns = WINDOW_NS.saturating_sub(self.spent_ns(now));
        (u128::from(left_ns) * u128::from(self.per_second) / u128::from(WINDOW_NS)) as u64
    }

    /// How long until all are left again.
    pub(super) fn full_in(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.spent_ns(now))
    }

    fn spent_ns(&self, now: Duration) -> u64 {
        self.paid_until_ns.load(Ordering::Relaxed).saturating_sub(nanoseconds(now))
    }

    fn price(&self, count: u64) -> u64 {
        u64::try_from(u128::from(count) * u128::from(WINDOW_NS) / u128::from(self.per_second)).unwrap_or(u64::MAX)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_seconds_worth_comes_at_once_and_then_no_more_than_the_rate() {
        let allowance = Allowance::new(10);
        assert_eq!(allowance.left(at(0)), 10);
        assert_eq!((0..20).filter(|_| allowance.take(at(0)).is_ok()).count(), 10);
        assert_eq!((allowance.take(at(0)), allowance.left(at(0))), (Err(Duration::from_millis(100)), 0));
        assert_eq!(allowance.take(at(60)), Err(Duration::from_millis(40)));
        assert!(allowance.take(at(100)).is_ok() && allowance.take(at(100)).is_err());
        assert_eq!((1..=1000).filter(|tenth| allowance.take(at(100 + tenth * 10)).is_ok()).count(), 100);
        assert_eq!((allowance.left(at(60_000)), allowance.full_in(at(60_000))), (10, Duration::ZERO));
    }

    #[test]
    fn what_is_charged_afterwards_may_run_into_debt_that_is_paid_before_the_next() {
        let allowance = Allowance::new(100);
        assert!(allowance.check(at(0)).is_ok());
        allowance.charge(350, at(0));
        assert_eq!(allowance.check(at(0)), Err(Duration::from_millis(2510)));
        assert_eq!((allowance.left(at(0)), allowance.full_in(at(0))), (0, Duration::from_millis(3500)));
        assert!(allowance.check(at(2500)).is_err() && allowance.check(at(2501)).is_ok());
        allowance.charge(u64::MAX, at(3000));
        assert!(allowance.check(at(3000)).is_err());
    }
}
