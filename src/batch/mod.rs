//! Between the many who ask and the one who computes: a bounded queue with a line for each lane, batches by token budget and
//! time, and the thread that owns the engine.
//!
//! The engine computes one batch at a time, so what a query waits for is the batch before it: batches are short (`pace`), all
//! of one lane, and chosen one by one (`schedule`).
//!
//! Promises: every accepted job ends exactly once (computed, failed, or dropped because nobody waits for it any more);
//! the queue never grows past its bound; a panic in the engine fails the batch it happened in and nothing else.
//! Never touches a store and never waits for a client.

mod line;
mod metrics;
mod pace;
mod plan;
mod queue;
mod schedule;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;

use crate::domain::{Lane, ModelCard, Tokens, Truncation};
use crate::engine::{self, AtOnce, Monitor, Tokenizer};
use crate::urgency::stand_back;

pub use crate::engine::{EngineError as TokenizeError, Residency, Token};
pub use plan::plan;
use queue::Queue;
pub use queue::{Computed, Job, JobError, LaneState, QueueState, Recipient, Refusal, Ticket};
use worker::Worker;

/// How texts are gathered into batches, and how many may wait.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most tokens the engine is given at once. One longer text goes alone.
    pub batch_tokens_max: usize,
    /// The most texts the engine is given at once.
    pub batch_texts_max: usize,
    /// How long a batch should take at most, by the rate measured: what a query may have to wait for.
    pub batch_time_max: Duration,
    /// The most texts that may wait; past it, more are refused. A part of it is kept for each lane.
    pub queue_texts_max: usize,
    /// How little urgent the engine's thread is, and those that read texts for it, as nice(1) has it: what is in a store is answered first.
    pub niceness: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_tokens_max: 4096,
            batch_texts_max: 256,
            batch_time_max: Duration::from_millis(30),
            queue_texts_max: 16_384,
            niceness: 10,
        }
    }
}

impl Config {
    /// The most texts that may wait in a lane, while nobody uses what is kept for the others.
    #[must_use]
    pub fn lane_texts_max(&self, lane: Lane) -> usize {
        queue::lane_texts_max(self.queue_texts_max, lane)
    }
}

/// A handle to a loaded model: tokenises here and now, computes in turn. Cloning is cheap.
#[derive(Clone)]
pub struct Embedder {
    shared: Arc<Shared>,
}

struct Shared {
    card: ModelCard,
    tokenizer: Arc<dyn Tokenizer>,
    monitor: Option<Arc<dyn Monitor>>,
    residency: Option<Residency>,
    queue: Arc<Queue>,
    worker: Worker,
    niceness: u8,
}

impl Embedder {
    /// Takes a model and starts the thread that owns its engine.
    #[must_use]
    pub fn start(model: engine::Model, config: Config) -> Self {
        let (monitor, residency) = (model.engine.monitor(), model.engine.residency());
        let config = match model.engine.at_once() {
            Some(AtOnce { texts, tokens }) => Config { batch_texts_max: texts, batch_tokens_max: tokens, ..config },
            None => config,
        };
        let niceness = config.niceness;
        let queue = Arc::new(Queue::new(config.clone()));
        let worker = Worker::start(model.engine, Arc::clone(&queue), config);
        let (card, tokenizer) = (model.card, model.tokenizer);
        Self { shared: Arc::new(Shared { card, tokenizer, monitor, residency, queue, worker, niceness }) }
    }

    /// Whether the model's weights are in memory; `None` for a model whose always are.
    #[must_use]
    pub fn residency(&self) -> Option<&Residency> {
        self.shared.residency.as_ref()
    }

    /// The model's facts.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.shared.card
    }

    /// The texts' token ids, in order. Blocks for as long as tokenising takes, and makes its thread less urgent, as the
    /// configuration says: not for async threads.
    ///
    /// # Errors
    /// When the tokenizer fails on a text.
    pub fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, TokenizeError> {
        stand_back(self.shared.niceness);
        self.shared.tokenizer.tokenize(texts, prompt, truncation)
    }

    /// One text's tokens with their pieces and positions. Blocks like [`Embedder::tokenize`].
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, TokenizeError> {
        stand_back(self.shared.niceness);
        self.shared.tokenizer.inspect(text, prompt, add_special_tokens)
    }

    /// How many different token ids there are.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.shared.tokenizer.vocabulary_size()
    }

    /// The piece of text that a token id stands for, in the tokenizer's own spelling.
    #[must_use]
    pub fn piece(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.piece(id)
    }

    /// Queues all of `jobs`, or none.
    ///
    /// # Errors
    /// When they do not all fit, or the embedder is draining; the jobs come back unharmed.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), (Refusal, Vec<Job>)> {
        self.shared.queue.push(jobs)
    }

    /// Moves those of the tickets' jobs that wait behind the lanes that the tickets say: to be called after
    /// [`Ticket::raise`]. A job that is not queued yet will be queued where its ticket says.
    pub fn promote(&self, tickets: &[Ticket]) {
        if !tickets.is_empty() {
            self.shared.queue.promote(tickets);
        }
    }

    /// How much waits, and how fast it goes.
    #[must_use]
    pub fn queue(&self) -> QueueState {
        self.shared.queue.state()
    }

    /// Refuses new jobs, finishes the accepted ones, and ends the thread. Blocks until then.
    pub fn drain(&self) {
        self.shared.queue.close();
        self.shared.worker.join();
    }

    /// Adds this part's metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.queue.metrics().register(registry);
        if let Some(monitor) = &self.shared.monitor {
            monitor.register(registry);
        }
    }

    /// What is wrong with the engine, if anything is, though it may still compute.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.monitor.as_ref()?.trouble()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}
