//! What the queue and the engine tell Prometheus.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

pub(super) struct Metrics {
    queue_texts: Gauge,
    queue_tokens: Gauge,
    batch_texts: Histogram,
    batch_tokens: Histogram,
    batch_fill: Histogram,
    inference_seconds: Histogram,
    queue_seconds: Histogram,
    pub(super) abandoned: Counter,
    pub(super) failures: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            queue_texts: Gauge::default(),
            queue_tokens: Gauge::default(),
            batch_texts: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            batch_tokens: Histogram::new(exponential_buckets(16.0, 2.0, 10)),
            batch_fill: Histogram::new((1..=10).map(|tenth| f64::from(tenth) / 10.0)),
            inference_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            queue_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            abandoned: Counter::default(),
            failures: Counter::default(),
        }
    }

    /// Both gauges are set from the queue itself, under its lock: they cannot drift.
    pub(super) fn set_queue(&self, texts: usize, tokens: usize) {
        self.queue_texts.set(texts as i64);
        self.queue_tokens.set(tokens as i64);
    }

    pub(super) fn observe_wait(&self, seconds: f64) {
        self.queue_seconds.observe(seconds);
    }

    pub(super) fn observe_batch(&self, texts: usize, tokens: usize, tokens_max: usize, seconds: f64) {
        self.batch_texts.observe(texts as f64);
        self.batch_tokens.observe(tokens as f64);
        self.batch_fill.observe(tokens as f64 / tokens_max as f64);
        self.inference_seconds.observe(seconds);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("queue_texts", "Texts that wait for the engine", self.queue_texts.clone());
        registry.register("queue_tokens", "Tokens that wait for the engine", self.queue_tokens.clone());
        registry.register("batch_texts", "Texts in a batch", self.batch_texts.clone());
        registry.register("batch_tokens", "Tokens in a batch", self.batch_tokens.clone());
        let fill = "Share of the token budget that a batch uses";
        registry.register_with_unit("batch_fill", fill, Unit::Ratios, self.batch_fill.clone());
        let inference = "Time the engine takes for a batch";
        registry.register_with_unit("inference", inference, Unit::Seconds, self.inference_seconds.clone());
        let wait = "Time a text waits for the engine";
        registry.register_with_unit("queue", wait, Unit::Seconds, self.queue_seconds.clone());
        let abandoned = "Texts dropped from the queue because nobody waited for them any more";
        registry.register("abandoned_texts", abandoned, self.abandoned.clone());
        registry.register("inference_failures", "Batches the engine failed", self.failures.clone());
    }
}
