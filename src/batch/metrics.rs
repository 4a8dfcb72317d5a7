//! What the queue and the engine tell Prometheus. Every series exists from the start.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::domain::Lane;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: LaneValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LaneValue(Lane);

impl EncodeLabelValue for LaneValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}

/// One metric a lane.
struct ByLane<M> {
    family: Family<LaneLabel, M, fn() -> M>,
    metrics: [M; Lane::ALL.len()],
}

impl<M: Clone> ByLane<M> {
    fn new(make: fn() -> M) -> Self {
        let family = Family::new_with_constructor(make);
        let metric = |lane| family.get_or_create_owned(&LaneLabel { lane: LaneValue(lane) });
        Self { metrics: Lane::ALL.map(metric), family }
    }

    fn of(&self, lane: Lane) -> &M {
        &self.metrics[lane as usize]
    }
}

pub(super) struct Metrics {
    queue_texts: ByLane<Gauge>,
    queue_tokens: ByLane<Gauge>,
    batch_texts: Histogram,
    batch_tokens: Histogram,
    batch_fill: Histogram,
    inference_seconds: Histogram,
    queue_seconds: ByLane<Histogram>,
    lane_tokens: ByLane<Counter>,
    lane_seconds: ByLane<Counter<f64, AtomicU64>>,
    refused: ByLane<Counter>,
    pub(super) promoted: Counter,
    pub(super) abandoned: Counter,
    pub(super) failures: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            queue_texts: ByLane::new(Gauge::default),
            queue_tokens: ByLane::new(Gauge::default),
            batch_texts: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            batch_tokens: Histogram::new(exponential_buckets(16.0, 2.0, 10)),
            batch_fill: Histogram::new((1..=10).map(|tenth| f64::from(tenth) / 10.0)),
            inference_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            queue_seconds: ByLane::new(|| Histogram::new(exponential_buckets(0.0005, 2.0, 16))),
            lane_tokens: ByLane::new(Counter::default),
            lane_seconds: ByLane::new(Counter::default),
            refused: ByLane::new(Counter::default),
            promoted: Counter::default(),
            abandoned: Counter::default(),
            failures: Counter::default(),
        }
    }

    /// Both gauges are set from the queue itself, under its lock: they cannot drift.
    pub(super) fn set_queue(&self, lane: Lane, texts: usize, tokens: usize) {
        self.queue_texts.of(lane).set(texts as i64);
        self.queue_tokens.of(lane).set(tokens as i64);
    }

    pub(super) fn observe_wait(&self, lane: Lane, seconds: f64) {
        self.queue_seconds.of(lane).observe(seconds);
    }

    pub(super) fn observe_refused(&self, lane: Lane, texts: usize) {
        self.refused.of(lane).inc_by(texts as u64);
    }

    pub(super) fn observe_batch(&self, lane: Lane, texts: usize, tokens: usize, tokens_max: usize, seconds: f64) {
        self.lane_tokens.of(lane).inc_by(tokens as u64);
        self.lane_seconds.of(lane).inc_by(seconds);
        self.batch_texts.observe(texts as f64);
        self.batch_tokens.observe(tokens as f64);
        self.batch_fill.observe(tokens as f64 / tokens_max as f64);
        self.inference_seconds.observe(seconds);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("queue_texts", "Texts that wait for the engine, by lane", self.queue_texts.family.clone());
        registry.register("queue_tokens", "Tokens that wait for the engine, by lane", self.queue_tokens.family.clone());
        registry.register("batch_texts", "Texts in a batch", self.batch_texts.clone());
        registry.register("batch_tokens", "Tokens in a batch", self.batch_tokens.clone());
        let fill = "Share of the token budget that a batch uses";
        registry.register_with_unit("batch_fill", fill, Unit::Ratios, self.batch_fill.clone());
        let inference = "Time the engine takes for a batch";
        registry.register_with_unit("inference", inference, Unit::Seconds, self.inference_seconds.clone());
        let wait = "Time a text waits for the engine, by lane";
        registry.register_with_unit("queue", wait, Unit::Seconds, self.queue_seconds.family.clone());
        registry.register("lane_tokens", "Tokens computed, by lane", self.lane_tokens.family.clone());
        let engine = "Time of the engine, by the lane that had it";
        registry.register_with_unit("lane_engine", engine, Unit::Seconds, self.lane_seconds.family.clone());
        let refused = "Texts refused because the queue had no room for them, by lane";
        registry.register("queue_refused_texts", refused, self.refused.family.clone());
        let promoted = "Texts moved to another lane because somebody more urgent asked for them too";
        registry.register("queue_promoted_texts", promoted, self.promoted.clone());
        let abandoned = "Texts dropped from the queue because nobody waited for them any more";
        registry.register("abandoned_texts", abandoned, self.abandoned.clone());
        registry.register("inference_failures", "Batches the engine failed", self.failures.clone());
    }
}
