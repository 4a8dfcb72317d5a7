//! Between the many who ask and the one who computes: a bounded queue, batches by token budget, and the thread that
//! owns the engine.
//!
//! Promises: every accepted job ends exactly once (computed, failed, or dropped because nobody waits for it any more);
//! the queue never grows past its bound; a panic in the engine fails the batch it happened in and nothing else.
//! Never touches a store and never waits for a client.

mod metrics;
mod plan;
mod queue;
mod worker;

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::domain::{ModelCard, Tokens, Truncation};
use crate::engine::{self, Tokenizer};

pub use crate::engine::{EngineError as TokenizeError, Token};
pub use plan::plan;
use queue::Queue;
pub use queue::{Computed, Job, JobError, QueueState, Recipient, Refusal};
use worker::Worker;

/// How texts are gathered into batches, and how many may wait.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most tokens the engine is given at once. One longer text goes alone.
    pub batch_tokens_max: usize,
    /// The most texts the engine is given at once.
    pub batch_texts_max: usize,
    /// The most texts that may wait; past it, more are refused.
    pub queue_texts_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { batch_tokens_max: 4096, batch_texts_max: 256, queue_texts_max: 16_384 }
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
    queue: Arc<Queue>,
    worker: Worker,
}

impl Embedder {
    /// Takes a model and starts the thread that owns its engine.
    #[must_use]
    pub fn start(model: engine::Model, config: Config) -> Self {
        let queue = Arc::new(Queue::new(config.queue_texts_max));
        let worker = Worker::start(model.engine, Arc::clone(&queue), config);
        Self { shared: Arc::new(Shared { card: model.card, tokenizer: model.tokenizer, queue, worker }) }
    }

    /// The model's facts.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.shared.card
    }

    /// The texts' token ids, in order. Blocks for as long as tokenising takes: not for async threads.
    ///
    /// # Errors
    /// When the tokenizer fails on a text.
    pub fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, TokenizeError> {
        self.shared.tokenizer.tokenize(texts, prompt, truncation)
    }

    /// One text's tokens with their pieces and positions. Blocks like [`Embedder::tokenize`].
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, TokenizeError> {
        self.shared.tokenizer.inspect(text, prompt, add_special_tokens)
    }

    /// How many different token ids there are.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.shared.tokenizer.vocabulary_size()
    }

    /// Queues all of `jobs`, or none.
    ///
    /// # Errors
    /// When they do not all fit, or the embedder is draining; the jobs come back unharmed.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), (Refusal, Vec<Job>)> {
        self.shared.queue.push(jobs)
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
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}
