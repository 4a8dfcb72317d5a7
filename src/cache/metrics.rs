//! What the cache tells Prometheus. Every series exists from the start.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::request::Item;
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
        }
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

    pub(super) fn observe(&self, items: &[Item]) {
        let mut by_status = [0; Status::ALL.len()];
        let (mut tokens, mut computed_tokens, mut truncated) = (0, 0, 0);
        for item in items {
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

    /// How many inputs have been answered with a status.
    pub(super) fn items(&self, status: Status) -> u64 {
        self.items_by_status[status as usize].get()
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
