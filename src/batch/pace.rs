//! How much goes into a batch: what the engine computes in a bounded time. Pure, and knows no clock.
//!
//! The engine cannot be interrupted, so whoever comes waits for the batch that is being computed. A processor gains
//! nothing from batches of more than some hundred tokens a core; a GPU does, and is fast: a bound in time is small for the one and
//! large for the other. The rate it needs is measured on the batches themselves. Where a batch costs something fixed and something a
//! token, the rate at a size times the time allowed finds the size that takes just that time.
//!
//! While queries come, a batch of the other lanes is to take no more than twice what a query does: with its own
//! batch that makes thrice.

use std::time::Duration;

use crate::domain::Lane;

/// What a first batch may hold, in tokens, while nothing is known of the engine.
const TOKENS_AT_FIRST: f64 = 512.0;
/// How much a batch counts in the moving average of the rate.
const RATE_WEIGHT: f64 = 0.3;
/// The same, of the time that queries take.
const QUERY_WEIGHT: f64 = 0.1;
/// How many times a query's own time it may wait for another lane's batch.
const QUERIES_WAIT: f64 = 2.0;
/// The least time that is allowed a batch, in seconds, however fast queries are: less would cost more than it gives.
const SECONDS_MIN: f64 = 0.004;
/// After this much engine time without a query, in seconds, none is expected.
const QUIET_SECONDS: f64 = 10.0;

pub(super) struct Pace {
    seconds_max: f64,
    tokens_max: usize,
    /// Of batches that filled the time they were allowed.
    tokens_per_second: f64,
    /// What a batch of the query lane takes; `None` before the first.
    query_seconds: Option<f64>,
    /// How long the engine has computed since the last query.
    quiet_seconds: f64,
}

impl Pace {
    pub(super) fn new(time_max: Duration, tokens_max: usize) -> Self {
        let seconds_max = time_max.as_secs_f64();
        let tokens_per_second = TOKENS_AT_FIRST / seconds_max;
        Self { seconds_max, tokens_max, tokens_per_second, query_seconds: None, quiet_seconds: 0.0 }
    }

    /// How long a lane's next batch should take, in seconds.
    fn seconds(&self, lane: Lane) -> f64 {
        match self.query_seconds {
            Some(query) if lane != Lane::Query && self.quiet_seconds < QUIET_SECONDS => {
                (QUERIES_WAIT * query).max(SECONDS_MIN).min(self.seconds_max)
            }
            _ => self.seconds_max,
        }
    }

    /// How many tokens a lane's next batch may hold; one longer text goes all the same.
    pub(super) fn tokens(&self, lane: Lane) -> usize {
        ((self.tokens_per_second * self.seconds(lane)) as usize).clamp(1, self.tokens_max)
    }

    /// Learns from a batch.
    pub(super) fn observe(&mut self, lane: Lane, tokens: usize, took: Duration) {
        let took = took.as_secs_f64().max(1e-6);
        // A batch that was small for want of texts says little of how fast a full one is, unless it was slow even so.
        if 2 * tokens >= self.tokens(lane) || took > self.seconds(lane) {
            self.tokens_per_second += RATE_WEIGHT * (tokens as f64 / took - self.tokens_per_second);
        }
        if lane == Lane::Query {
            let query = self.query_seconds.get_or_insert(took);
            *query += QUERY_WEIGHT * (took - *query);
            self.quiet_seconds = 0.0;
        } else {
            self.quiet_seconds += took;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine with a cost a batch and a rate.
    struct Affine {
        fixed: f64,
        tokens_per_second: f64,
    }

    impl Affine {
        fn took(&self, tokens: usize) -> Duration {
            Duration::from_secs_f64(self.fixed + tokens as f64 / self.tokens_per_second)
        }
    }

    const PROCESSOR: Affine = Affine { fixed: 0.0005, tokens_per_second: 15_000.0 };
    const GPU: Affine = Affine { fixed: 0.003, tokens_per_second: 1_000_000.0 };
    const MAX: Duration = Duration::from_millis(30);

    fn flooded(pace: &mut Pace, engine: &Affine, batches: usize) -> Duration {
        for _ in 0..batches {
            let tokens = pace.tokens(Lane::WarmUp);
            pace.observe(Lane::WarmUp, tokens, engine.took(tokens));
        }
        engine.took(pace.tokens(Lane::WarmUp))
    }

    #[test]
    fn a_flood_is_cut_into_batches_of_the_time_allowed_whatever_the_engine() {
        for engine in [PROCESSOR, GPU] {
            let took = flooded(&mut Pace::new(MAX, 1 << 20), &engine, 60);
            assert!((0.027..0.033).contains(&took.as_secs_f64()), "{took:?}");
        }
        let mut pace = Pace::new(MAX, 4096);
        flooded(&mut pace, &GPU, 60);
        assert_eq!(pace.tokens(Lane::WarmUp), 4096);
    }

    #[test]
    fn while_queries_come_other_batches_take_twice_what_a_query_does_and_afterwards_more_again() {
        for engine in [PROCESSOR, GPU] {
            let mut pace = Pace::new(MAX, 1 << 20);
            let query = engine.took(60);
            for _ in 0..40 {
                pace.observe(Lane::Query, 60, query);
                flooded(&mut pace, &engine, 2);
            }
            let took = engine.took(pace.tokens(Lane::Ingest)).as_secs_f64() / query.as_secs_f64();
            assert!((1.8..2.2).contains(&took), "{took}");
            let took = flooded(&mut pace, &engine, 3000);
            assert!((0.027..0.033).contains(&took.as_secs_f64()), "{took:?}");
        }
    }

    #[test]
    fn small_batches_and_one_hiccup_do_not_teach_it_that_the_engine_is_slow() {
        let mut pace = Pace::new(MAX, 1 << 20);
        flooded(&mut pace, &GPU, 60);
        let before = pace.tokens(Lane::WarmUp);
        for _ in 0..100 {
            pace.observe(Lane::Ingest, 20, GPU.took(20));
        }
        assert_eq!(pace.tokens(Lane::WarmUp), before);
        pace.observe(Lane::WarmUp, before, Duration::from_secs(5));
        assert!(pace.tokens(Lane::WarmUp) > before / 2);
    }
}
