//! What the cache tells Prometheus. Every series exists from the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::request::Answer;
use super::windows::{Counts, TICK_SECONDS, Windows};
use crate::domain::Status;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: StatusValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StatusValue(Status);

impl EncodeLabelValue for StatusValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}

pub(super) struct Metrics {
    items: Family<StatusLabel, Counter>,
    items_by_status: [Counter; Status::ALL.len()],
    tokens: Counter,
    tokens_saved: Counter,
    truncated: Counter,
    write_failures: Counter,
    write_failures_in_a_row: AtomicU64,
    stale: Counter,
    refreshed: Counter,
    refresh_failures: Counter,
    windows: Windows,
    started: Instant,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let items = Family::<StatusLabel, Counter>::default();
        let counter = |status| items.get_or_create(&StatusLabel { status: StatusValue(status) }).clone();
        Self {
            items_by_status: Status::ALL.map(counter),
            items,
            tokens: Counter::default(),
            tokens_saved: Counter::default(),
            truncated: Counter::default(),
            write_failures: Counter::default(),
            write_failures_in_a_row: AtomicU64::new(0),
            stale: Counter::default(),
            refreshed: Counter::default(),
            refresh_failures: Counter::default(),
            windows: Windows::new(),
            started: Instant::now(),
        }
    }

    /// Counts an entry that was computed anew in the background, or could not be.
    pub(super) fn observe_refresh(&self, succeeded: bool) {
        if succeeded {
            self.refreshed.inc()
        } else {
            self.refresh_failures.inc()
        };
    }

    pub(super) fn observe_write(&self, succeeded: bool) {
        if succeeded {
            self.write_failures_in_a_row.store(0, Ordering::Relaxed);
        } else {
            self.write_failures.inc();
            self.write_failures_in_a_row.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn write_failures_in_a_row(&self) -> u64 {
        self.write_failures_in_a_row.load(Ordering::Relaxed)
    }

    /// Counts an answer that was begun at `started`.
    pub(super) fn observe(&self, answer: &Answer, started: Instant) {
        self.windows.observe(self.tick(started), || self.counts());
        if answer.freshness.stale > 0 {
            self.stale.inc_by(answer.freshness.stale as u64);
        }
        let mut by_status = [0; Status::ALL.len()];
        let (mut tokens, mut computed_tokens, mut truncated) = (0, 0, 0);
        for item in &answer.items {
            by_status[item.status as usize] += 1;
            tokens += u64::from(item.tokens);
            computed_tokens += if item.status == Status::Computed { u64::from(item.tokens) } else { 0 };
            truncated += u64::from(item.truncated);
        }
        for (counter, count) in self.items_by_status.iter().zip(by_status) {
            if count > 0 {
                counter.inc_by(count);
            }
        }
        self.tokens.inc_by(tokens);
        self.tokens_saved.inc_by(tokens - computed_tokens);
        if truncated > 0 {
            self.truncated.inc_by(truncated);
        }
    }

    /// The tick of the windows that a moment lies in.
    fn tick(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.started).as_secs() / TICK_SECONDS
    }

    /// How many inputs have been answered, by status.
    pub(super) fn counts(&self) -> Counts {
        self.items_by_status.each_ref().map(Counter::get)
    }

    /// How many inputs have been answered in the last seconds, by status.
    pub(super) fn last(&self, seconds: u64) -> Counts {
        self.windows.last(seconds, self.tick(Instant::now()), &self.counts())
    }

    pub(super) fn stale(&self) -> u64 {
        self.stale.get()
    }

    pub(super) fn refreshed(&self) -> u64 {
        self.refreshed.get()
    }

    pub(super) fn refresh_failures(&self) -> u64 {
        self.refresh_failures.get()
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens.get()
    }

    pub(super) fn tokens_saved(&self) -> u64 {
        self.tokens_saved.get()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("items", "Inputs answered, by where their vector came from", self.items.clone());
        registry.register("tokens", "Tokens of all answered inputs", self.tokens.clone());
        let saved = "Tokens of answered inputs that the model did not have to read";
        registry.register("tokens_saved", saved, self.tokens_saved.clone());
        registry.register(
            "truncated_items",
            "Answered inputs that were cut to the model's length",
            self.truncated.clone(),
        );
        let failures = "Writes to the store that failed; their vectors were answered all the same";
        registry.register("store_write_failures", failures, self.write_failures.clone());
        registry.register("stale_items", "Answered inputs whose entries were marked stale", self.stale.clone());
        let refreshed = "Entries computed anew in the background after a hit";
        registry.register("refreshed", refreshed, self.refreshed.clone());
        let failures = "Entries that could not be computed anew in the background; the old ones are served on";
        registry.register("refresh_failures", failures, self.refresh_failures.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_index_their_counters() {
        for (index, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, index);
        }
    }
}
