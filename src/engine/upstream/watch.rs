//! What the outside may know: counters, and what is wrong now.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::super::Monitor;

/// What can be wrong, one thing at a time each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Concern {
    /// The model there is not the one whose vectors are stored.
    Changed,
    /// The canary's vector could not be had.
    Unchecked,
    /// The last request failed, and not for its texts.
    Failing,
    /// The day's budget is spent.
    Spent,
    /// What has to survive a restart cannot be written.
    Unsaved,
}

pub(super) struct Watch {
    pub(super) requests: Counter,
    pub(super) retries: Counter,
    pub(super) errors: Counter,
    pub(super) over_budget: Counter,
    pub(super) tokens: Counter,
    pub(super) seconds: Histogram,
    pub(super) wait_seconds: Histogram,
    pub(super) similarity: Gauge<f64, AtomicU64>,
    changed: Gauge,
    troubles: Mutex<BTreeMap<Concern, String>>,
}

impl Watch {
    pub(super) fn new() -> Self {
        let similarity = Gauge::<f64, AtomicU64>::default();
        similarity.set(1.0);
        Self {
            requests: Counter::default(),
            retries: Counter::default(),
            errors: Counter::default(),
            over_budget: Counter::default(),
            tokens: Counter::default(),
            seconds: Histogram::new(exponential_buckets(0.01, 2.0, 13)),
            wait_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 13)),
            similarity,
            changed: Gauge::default(),
            troubles: Mutex::default(),
        }
    }

    /// Each change is complete before anything that can panic.
    fn troubles(&self) -> MutexGuard<'_, BTreeMap<Concern, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is wrong; logged when it was not before.
    pub(super) fn raise(&self, concern: Concern, message: String) {
        if concern == Concern::Changed {
            self.changed.set(1);
        }
        if !self.troubles().contains_key(&concern) {
            tracing::error!(trouble = message, "the upstream is in trouble");
        }
        self.troubles().insert(concern, message);
    }

    /// Notes that it no longer is.
    pub(super) fn clear(&self, concern: Concern) {
        if concern == Concern::Changed {
            self.changed.set(0);
        }
        if let Some(message) = self.troubles().remove(&concern) {
            tracing::info!(trouble = message, "the upstream is out of trouble");
        }
    }

    pub(super) fn has(&self, concern: Concern) -> bool {
        self.troubles().contains_key(&concern)
    }
}

impl Monitor for Watch {
    fn register(&self, registry: &mut Registry) {
        let upstream = registry.sub_registry_with_prefix("upstream");
        upstream.register("requests", "Requests sent to the upstream, tries again among them", self.requests.clone());
        upstream.register("retries", "Requests sent to the upstream again", self.retries.clone());
        upstream.register("errors", "Requests the upstream failed at every try", self.errors.clone());
        let over_budget = "Requests not sent because the day's budget is spent";
        upstream.register("over_budget", over_budget, self.over_budget.clone());
        let tokens = "Tokens the upstream says it computed; a third of the characters where it does not say";
        upstream.register("tokens", tokens, self.tokens.clone());
        upstream.register_with_unit("request", "Time of one try", Unit::Seconds, self.seconds.clone());
        let wait = "Time a request waits for its turn under the rate limits";
        upstream.register_with_unit("wait", wait, Unit::Seconds, self.wait_seconds.clone());
        upstream.register(
            "canary_similarity",
            "Cosine of the canary's vector to its first one",
            self.similarity.clone(),
        );
        let changed = "Whether the canary's vector is another than at first";
        upstream.register("canary_changed", changed, self.changed.clone());
    }

    fn trouble(&self) -> Option<String> {
        let troubles: Vec<String> = self.troubles().values().cloned().collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }
}
