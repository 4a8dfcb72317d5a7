//! The cache's figures, for people and programs.

use std::collections::BTreeMap;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use super::Shared;
use super::resident::resident;
use super::reuse::ReuseFigures;
use super::search::IndexFigures;
use super::windows::{Counts, WINDOWS};
use crate::batch::{Embedder, QueueState, Residency};
use crate::domain::Status;
use crate::remote;
use crate::store::Info;
use std::sync::Weak;

/// The cache's figures since it was opened.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// The served model's name.
    pub model: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Whether the cache is switched on.
    pub cache_enabled: bool,
    /// Inputs answered, by status.
    pub items: BTreeMap<&'static str, u64>,
    /// Share of answered inputs that the model did not have to compute; `None` before the first.
    pub hit_rate: Option<f64>,
    /// Share of answered inputs that came from each tier.
    pub tiers: BTreeMap<&'static str, Tier>,
    /// The same of the last minute, quarter of an hour and hour.
    pub windows: BTreeMap<&'static str, Window>,
    /// Tokens of all answered inputs.
    pub tokens: u64,
    /// Those that the model did not have to read.
    pub tokens_saved: u64,
    /// Hits on entries marked stale.
    pub stale: u64,
    /// Entries computed anew in the background.
    pub refreshed: u64,
    /// Entries that could not be.
    pub refresh_failures: u64,
    /// Keys being answered right now.
    pub in_flight: usize,
    /// What waits for the engine.
    pub queue: QueueState,
    /// The model's weights.
    pub weights: Weights,
    /// Why entries left the store.
    pub evictions: Evictions,
    /// Memory.
    pub memory: Memory,
    /// The index that searches read.
    pub index: IndexFigures,
    /// The reuse of near-duplicates' vectors, and its measured error.
    pub reuse: ReuseFigures,
    /// The tier shared with other machines, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<remote::Figures>,
    /// The store.
    pub store: Info,
}

/// A model's weights, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// Whether they are in memory.
    pub loaded: bool,
    /// The size of their files; 0 if they are always in memory.
    pub bytes: u64,
    /// How often they were loaded.
    pub loads: u64,
    /// How often they were dropped.
    pub unloads: u64,
}

impl Weights {
    fn of(residency: Option<&Residency>) -> Self {
        match residency {
            None => Self { loaded: true, bytes: 0, loads: 0, unloads: 0 },
            Some(residency) => Self {
                loaded: residency.is_loaded(),
                bytes: residency.bytes(),
                loads: residency.loads(),
                unloads: residency.unloads(),
            },
        }
    }
}

/// What came from one tier.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tier {
    /// Inputs answered from it.
    pub hits: u64,
    /// Their share of all; `None` before the first.
    pub hit_rate: Option<f64>,
}

/// What was answered lately.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// How long it is.
    pub seconds: u64,
    /// Inputs answered, by status.
    pub items: BTreeMap<&'static str, u64>,
    /// Share of them that the model did not have to compute; `None` if there were none.
    pub hit_rate: Option<f64>,
    /// Share of them that came from each tier.
    pub tiers: BTreeMap<&'static str, Tier>,
}

/// Entries that left the store since it was opened, by cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Evictions {
    /// To make room.
    pub capacity: u64,
    /// Because their namespace had more than it may.
    pub quota: u64,
    /// Because their time was over.
    pub expired: u64,
    /// Because somebody said so.
    pub removed: u64,
    /// For a newer one of their key.
    pub replaced: u64,
    /// Because they were found damaged.
    pub damaged: u64,
}

/// Memory as it is accounted, and as the system counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// What the store keeps beside the map of its file.
    pub accounted_bytes: u64,
    /// What the process has in RAM, mapped pages of the store's file included; `None` where the system does not say.
    pub resident_bytes: Option<u64>,
    /// Of it, what is not a file's: heap and stacks.
    pub resident_anonymous_bytes: Option<u64>,
}

impl Stats {
    pub(super) fn of(shared: &Shared, embedder: &Embedder, model: String, fingerprint: String) -> Self {
        let counts = shared.metrics.counts();
        let store = shared.store.info();
        let resident = resident();
        Self {
            model,
            fingerprint,
            cache_enabled: shared.is_enabled(),
            items: items(&counts),
            hit_rate: share(counts.iter().sum::<u64>() - of(&counts, Status::Computed), &counts),
            tiers: tiers(&counts),
            windows: WINDOWS.into_iter().map(|(name, seconds)| (name, window(shared, seconds))).collect(),
            tokens: shared.metrics.tokens(),
            tokens_saved: shared.metrics.tokens_saved(),
            stale: shared.metrics.stale(),
            refreshed: shared.metrics.refreshed(),
            refresh_failures: shared.metrics.refresh_failures(),
            in_flight: shared.flights.len(),
            queue: embedder.queue(),
            weights: Weights::of(embedder.residency()),
            evictions: Evictions {
                capacity: store.evicted,
                quota: store.over_quota,
                expired: store.expired,
                removed: store.removed,
                replaced: store.replaced,
                damaged: store.quarantined,
            },
            memory: Memory {
                accounted_bytes: store.memory_bytes,
                resident_bytes: resident.map(|resident| resident.resident_bytes),
                resident_anonymous_bytes: resident.map(|resident| resident.resident_anonymous_bytes),
            },
            index: shared.searchable.figures(),
            reuse: shared.reuse.figures(),
            remote: shared.tier.as_ref().map(|shared| shared.tier().figures()),
            store,
        }
    }
}

fn window(shared: &Shared, seconds: u64) -> Window {
    let counts = shared.metrics.last(seconds);
    let all: u64 = counts.iter().sum();
    Window {
        seconds,
        items: items(&counts),
        hit_rate: share(all - of(&counts, Status::Computed), &counts),
        tiers: tiers(&counts),
    }
}

fn of(counts: &Counts, status: Status) -> u64 {
    counts[status as usize]
}

fn items(counts: &Counts) -> BTreeMap<&'static str, u64> {
    Status::ALL.into_iter().map(|status| (status.as_str(), of(counts, status))).collect()
}

/// What part of everything counted `hits` are.
fn share(hits: u64, counts: &Counts) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    (all > 0).then(|| hits as f64 / all as f64)
}

fn tiers(counts: &Counts) -> BTreeMap<&'static str, Tier> {
    let hits = of(counts, Status::Hit) + of(counts, Status::TokenHit);
    let tier = |hits| Tier { hits, hit_rate: share(hits, counts) };
    [("local", tier(hits)), ("remote", tier(of(counts, Status::Remote)))].into()
}

/// Reads the store's figures at each scrape, for as long as it is open.
pub(super) struct StoreCollector(pub(super) Weak<Shared>, pub(super) Option<Residency>);

impl std::fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        let info = shared.store.info();
        let weights = Weights::of(self.1.as_ref());
        let index = shared.searchable.figures();
        let reuse = shared.reuse.figures();
        let texts = reuse.fields.iter().map(|field| field.texts).sum();
        let certificates = reuse.fields.iter().flat_map(|field| &field.certificates).filter(|one| !one.suspended);
        let gauges: [(&str, &str, u64); 18] = [
            ("store_entries", "Entries in the store", info.entries),
            ("store_capacity_entries", "Entries the store can hold", info.capacity_entries),
            ("store_bytes", "Bytes of disk the store's file takes", info.allocated_bytes),
            ("store_memory_bytes", "Bytes of memory the store's table takes", info.memory_bytes),
            ("store_degraded", "1 if the store can no longer promise durability", u64::from(info.degraded.is_some())),
            ("store_live_bytes", "Bytes of disk that entries take", info.live_bytes),
            ("store_dead_bytes", "Bytes of disk that entries took and new ones will take", info.dead_bytes),
            ("store_pinned", "Entries that are never evicted", info.pinned),
            ("cache_enabled", "1 if the cache is switched on", u64::from(shared.is_enabled())),
            ("in_flight", "Keys being answered right now", shared.flights.len() as u64),
            ("model_loaded", "1 if the model's weights are in memory", u64::from(weights.loaded)),
            ("model_weights_bytes", "Bytes of the model's weights, loaded or not", weights.bytes),
            ("index_entries", "Entries in the index that searches read; 0 before the first search", index.entries),
            ("index_memory_bytes", "Bytes of memory that index takes", index.memory_bytes),
            ("reuse_texts", "Texts that reuse is learnt from, and that may be reused", texts),
            ("reuse_certificates", "Certificates of reuse that are not switched off", certificates.count() as u64),
            ("index_graph_segments", "Segments of the index's graph", index.graph_segments),
            ("index_graph_entries", "Entries that searches find by the graph", index.graph_entries),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        let counters: [(&str, &str, u64); 20] = [
            ("store_evicted", "Entries evicted to make room", info.evicted),
            ("store_over_quota", "Entries dropped because their namespace had more than it may", info.over_quota),
            ("store_expired", "Entries removed because their time was over", info.expired),
            ("store_quarantined", "Entries found damaged and never served", info.quarantined),
            ("store_removed", "Entries removed because somebody said so", info.removed),
            ("store_replaced", "Entries replaced by newer ones of their key", info.replaced),
            ("store_torn_reads", "Reads that met a file cut short, and were done again", info.torn_reads),
            ("store_lost_pages", "Times a part of the file was found cut off or unreadable", info.lost_pages),
            ("store_scrubbed", "Entries whose checksum the scrubber has checked", info.scrubbed),
            ("store_scrub_passes", "Times the scrubber has been through all entries", info.scrub_passes),
            ("store_write_errors", "Writes and syncs that the system refused", info.write_errors),
            ("search_device_faults", "Searches that failed on a device, and were made by the processor", index.faults),
            ("search_repeated", "Searches answered from what was kept of earlier ones", index.repeated),
            ("model_loads", "Times the model's weights were loaded", weights.loads),
            ("model_unloads", "Times the model's weights were dropped", weights.unloads),
            ("reuse_learnt", "Texts that reuse was learnt from", reuse.learnt),
            ("reuse_audits", "Reused vectors that were compared with the text's own", reuse.audits),
            (
                "reuse_audits_failed",
                "Reused vectors that could not be, for want of the text's own",
                reuse.audits_failed,
            ),
            ("reuse_violations", "Reused vectors that were below their floor", reuse.violations),
            ("reuse_suspended", "Certificates that their audits have switched off", reuse.suspended),
        ];
        for (name, help, value) in counters {
            let counter = prometheus_client::metrics::counter::ConstCounter::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(encoder)?;
        }
        Ok(())
    }
}
