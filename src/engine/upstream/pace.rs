//! How fast, and how much a day. Pure: the time is given.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::settings::Upstream;

const DAY_SECONDS: u64 = 86_400;

/// Seconds of requests that may go at once after a pause.
const REQUESTS_BURST_SECONDS: f64 = 1.0;
/// Seconds of tokens that may go at once after a pause: endpoints that allow so many a minute look at less than a minute.
const TOKENS_BURST_SECONDS: f64 = 10.0;

/// Requests a second, tokens a minute, and the pause an endpoint has asked for.
pub(super) struct Limiter {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    held_until: Duration,
}

/// A token bucket that may be in debt: what is taken early delays those who come later, in their order.
struct Bucket {
    per_second: f64,
    capacity: f64,
    level: f64,
    at: Duration,
}

impl Bucket {
    fn new(per_second: f64, capacity: f64) -> Self {
        Self { per_second, capacity, level: capacity, at: Duration::ZERO }
    }

    /// How long until `cost` may be taken. More than the bucket holds may go when it is full.
    fn wait(&mut self, now: Duration, cost: f64) -> Duration {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.capacity);
        self.at = self.at.max(now);
        Duration::from_secs_f64(((cost.min(self.capacity) - self.level) / self.per_second).clamp(0.0, 1e9))
    }
}

impl Limiter {
    pub(super) fn new(upstream: &Upstream) -> Self {
        let requests =
            upstream.requests_per_second.map(|rate| Bucket::new(rate, (rate * REQUESTS_BURST_SECONDS).max(1.0)));
        let tokens = upstream.tokens_per_minute.map(|tokens| {
            let rate = tokens as f64 / 60.0;
            Bucket::new(rate, (rate * TOKENS_BURST_SECONDS).max(1.0))
        });
        Self { requests, tokens, held_until: Duration::ZERO }
    }

    /// Takes room for a request of so many tokens, and answers how long to wait before sending it; the wait is the error,
    /// and nothing is taken, if it is longer than `patience`.
    pub(super) fn take(&mut self, now: Duration, tokens: u64, patience: Duration) -> Result<Duration, Duration> {
        let cost = tokens as f64;
        let waits = [
            self.held_until.saturating_sub(now),
            self.requests.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(now, 1.0)),
            self.tokens.as_mut().map_or(Duration::ZERO, |bucket| bucket.wait(now, cost)),
        ];
        let wait = waits.into_iter().max().unwrap_or_default();
        if wait > patience {
            return Err(wait);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.level -= 1.0;
        }
        self.correct(0, tokens);
        Ok(wait)
    }

    /// Replaces what was taken by what was used.
    pub(super) fn correct(&mut self, taken: u64, used: u64) {
        if let Some(bucket) = &mut self.tokens {
            bucket.level = (bucket.level + taken as f64 - used as f64).min(bucket.capacity);
        }
    }

    /// Nothing is sent until then.
    pub(super) fn hold(&mut self, until: Duration) {
        self.held_until = self.held_until.max(until);
    }
}

/// Tokens spent today.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spent {
    /// Days since 1970, UTC.
    pub(super) day: u64,
    pub(super) tokens: u64,
}

impl Spent {
    /// Sets tokens aside, or says how long until the next day when they are more than is left of this one's.
    pub(super) fn take(&mut self, unix_seconds: u64, tokens: u64, per_day: Option<u64>) -> Result<(), Duration> {
        let day = unix_seconds / DAY_SECONDS;
        if day != self.day {
            *self = Self { day, tokens: 0 };
        }
        if per_day.is_some_and(|most| self.tokens.saturating_add(tokens) > most) {
            return Err(Duration::from_secs(DAY_SECONDS - unix_seconds % DAY_SECONDS));
        }
        self.tokens = self.tokens.saturating_add(tokens);
        Ok(())
    }

    /// Replaces what was set aside by what was used.
    pub(super) fn correct(&mut self, taken: u64, used: u64) {
        self.tokens = self.tokens.saturating_add(used).saturating_sub(taken);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::settings::tests::upstream;
    use super::*;

    const FOREVER: Duration = Duration::MAX;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn after_the_burst_each_request_waits_its_turn() {
        let mut limiter = Limiter::new(&upstream("requests_per_second = 2.0"));
        let waits: Vec<Duration> = (0..4).map(|_| limiter.take(Duration::ZERO, 1, FOREVER).unwrap()).collect();
        assert_eq!(waits, [0.0, 0.0, 0.5, 1.0].map(seconds));
        assert_eq!(limiter.take(seconds(10.0), 1, FOREVER), Ok(Duration::ZERO));
    }

    #[test]
    fn tokens_are_paced_by_what_was_used_and_not_by_what_was_thought() {
        let mut limiter = Limiter::new(&upstream("tokens_per_minute = 600"));
        assert_eq!(limiter.take(Duration::ZERO, 100, FOREVER), Ok(Duration::ZERO));
        limiter.correct(100, 50);
        assert_eq!(limiter.take(Duration::ZERO, 60, FOREVER), Ok(seconds(1.0)));
        // More than the bucket holds goes when the bucket is full, and is paid for by those after it.
        assert_eq!(limiter.take(seconds(11.0), 300, FOREVER), Ok(Duration::ZERO));
        assert_eq!(limiter.take(seconds(11.0), 10, FOREVER), Ok(seconds(21.0)));
    }

    #[test]
    fn a_wait_past_the_patience_takes_nothing() {
        let mut limiter = Limiter::new(&upstream("requests_per_second = 1.0"));
        limiter.hold(seconds(30.0));
        assert_eq!(limiter.take(Duration::ZERO, 1, seconds(5.0)), Err(seconds(30.0)));
        assert_eq!(limiter.take(seconds(30.0), 1, seconds(5.0)), Ok(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn no_window_holds_more_requests_than_the_rate_and_the_burst(
            gaps in prop::collection::vec(0.0f64..0.4, 1..200), rate in 1.0f64..20.0,
        ) {
            let mut limiter = Limiter::new(&Upstream { requests_per_second: Some(rate), ..upstream("") });
            let (mut now, mut sent) = (0.0, Vec::new());
            for gap in gaps {
                now += gap;
                sent.push(now + limiter.take(seconds(now), 1, FOREVER).unwrap().as_secs_f64());
            }
            for (first, start) in sent.iter().enumerate() {
                let within = sent[first..].iter().filter(|&&at| at - start < 1.0).count();
                prop_assert!(within as f64 <= 2.0 * rate.max(1.0) + 1.0, "{within} in a second at {rate}");
            }
        }
    }

    #[test]
    fn a_spent_day_refuses_until_midnight_and_the_next_begins_anew() {
        let mut spent = Spent::default();
        let evening = 20_000 * DAY_SECONDS - 100;
        assert_eq!(spent.take(evening, 60, Some(100)), Ok(()));
        assert_eq!(spent.take(evening, 60, Some(100)), Err(Duration::from_secs(100)));
        spent.correct(60, 40);
        assert_eq!(spent.take(evening, 60, Some(100)), Ok(()));
        assert_eq!(spent.take(evening + 100, 60, Some(100)), Ok(()));
        assert_eq!(spent, Spent { day: 20_000, tokens: 60 });
    }
}
