//! The cache's figures, for people and programs.

use std::collections::BTreeMap;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use super::Shared;
use crate::batch::QueueState;
use crate::domain::Status;
use crate::store::Info;
use std::sync::Arc;

/// The cache's figures since it was opened.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// The served model's name.
    pub model: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Inputs answered, by status.
    pub items: BTreeMap<&'static str, u64>,
    /// Share of answered inputs that the model did not have to compute; `None` before the first.
    pub hit_rate: Option<f64>,
    /// Tokens of all answered inputs.
    pub tokens: u64,
    /// Those that the model did not have to read.
    pub tokens_saved: u64,
    /// Keys being answered right now.
    pub in_flight: usize,
    /// What waits for the engine.
    pub queue: QueueState,
    /// The store.
    pub store: Info,
}

impl Stats {
    pub(super) fn of(shared: &Shared, queue: QueueState, model: String, fingerprint: String) -> Self {
        let items: BTreeMap<_, _> =
            Status::ALL.into_iter().map(|status| (status.as_str(), shared.metrics.items(status))).collect();
        let all: u64 = items.values().sum();
        let computed = shared.metrics.items(Status::Computed);
        Self {
            model,
            fingerprint,
            items,
            hit_rate: (all > 0).then(|| (all - computed) as f64 / all as f64),
            tokens: shared.metrics.tokens(),
            tokens_saved: shared.metrics.tokens_saved(),
            in_flight: shared.flights.len(),
            queue,
            store: shared.store.info(),
        }
    }
}

/// Reads the store's figures at each scrape.
pub(super) struct StoreCollector(pub(super) Arc<Shared>);

impl std::fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let info = self.0.store.info();
        let gauges: [(&str, &str, u64); 6] = [
            ("store_entries", "Entries in the store", info.entries),
            ("store_capacity_entries", "Entries the store can hold", info.capacity_entries),
            ("store_bytes", "Bytes of disk the store's file takes", info.allocated_bytes),
            ("store_memory_bytes", "Bytes of memory the store's table takes", info.memory_bytes),
            ("store_degraded", "1 if the store can no longer promise durability", u64::from(info.degraded.is_some())),
            ("in_flight", "Keys being answered right now", self.0.flights.len() as u64),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        let counters: [(&str, &str, u64); 4] = [
            ("store_evicted", "Entries evicted to make room", info.evicted),
            ("store_expired", "Entries removed because their time was over", info.expired),
            ("store_quarantined", "Entries found damaged and never served", info.quarantined),
            ("store_write_errors", "Writes and syncs that the system refused", info.write_errors),
        ];
        for (name, help, value) in counters {
            let counter = prometheus_client::metrics::counter::ConstCounter::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(encoder)?;
        }
        Ok(())
    }
}
