//! Models: from a name to token batches in, vectors out.
//!
//! The whole boundary is two traits, [`Tokenizer`] and [`Engine`], and a [`Model`] that holds one of each with its card.
//! [`open`] finds a model's files (`source`), checks them against its manifest (`manifest`) and loads them (`load`);
//! [`describe`] leaves out the weights, which [`Residents`] loads when they are needed and drops when they are not.
//!
//! Never caches, never queues, never normalises: what a text's vector is, and nothing about who asks for it.

mod device;
mod encoder;
mod error;
pub mod fake;
mod families;
mod guard;
mod kernel;
mod load;
pub mod manifest;
mod options;
mod pooling;
mod precision;
mod resident;
mod sentence_transformers;
mod source;
mod tensors;
mod threads;
mod tokenizer;
mod upstream;
mod weights;

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::domain::{ModelCard, Tokens, Truncation};

pub use device::has_cuda_driver;
pub use error::EngineError;
pub use load::{describe, open, verify};
pub use manifest::Manifest;
pub use options::{DeviceChoice, Options, Precision};
pub use resident::{Described, EngineSource, Residency, Residents};
pub use source::{Located, Origin, Sources, find, locate};
pub use upstream::{Dialect, Encoding, OnChange, Upstream};

/// The instruction set that the CPU's encoder uses on this machine, such as `avx2`; `scalar` if it has none of ours.
#[must_use]
pub fn instruction_set() -> &'static str {
    kernel::Kernel::supported()[0].name
}

/// What computes vectors. One thread owns it.
pub trait Engine: Send {
    /// One vector for each sequence of token ids, in order, pooled and not normalised.
    ///
    /// A text's vector does not depend on the batch it comes in, beyond the last bits of f32. No state is kept between
    /// calls, so a panic in one leaves nothing half done.
    ///
    /// # Errors
    /// When the batch cannot be computed.
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Whether its weights are in memory, for engines whose are not always.
    fn residency(&self) -> Option<Residency> {
        None
    }

    /// What computes, for people: the arithmetic and the instruction set or device, such as `i16 avx2`.
    fn kernel(&self) -> String {
        "unnamed".to_owned()
    }

    /// As [`Engine::embed`], where texts may fail one by one: one outcome a text, in order.
    fn embed_each(&mut self, batch: &[&[u32]]) -> Vec<Result<Vec<f32>, EngineError>> {
        match self.embed(batch) {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        }
    }

    /// How much it wants to be given at once, where that is not for the batcher's settings to say.
    fn at_once(&self) -> Option<AtOnce> {
        None
    }

    /// What tells about it while its thread has it.
    fn monitor(&self) -> Option<Arc<dyn Monitor>> {
        None
    }
}

/// Refuses a batch with a text that has no tokens: no network makes a vector of nothing.
fn check_not_empty(batch: &[&[u32]]) -> Result<(), EngineError> {
    if batch.iter().any(|ids| ids.is_empty()) {
        return Err(EngineError::Tokenizer("a text has no tokens at all, not even special ones".to_owned()));
    }
    Ok(())
}

/// The most that an engine wants to be given at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    /// Texts.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
}

/// What can be known of an engine from other threads.
pub trait Monitor: Send + Sync {
    /// Adds its metrics to a registry.
    fn register(&self, registry: &mut Registry);

    /// What is wrong with it now, if anything is, though it may still compute.
    fn trouble(&self) -> Option<String>;
}

/// What turns texts into token ids. Used from many threads.
pub trait Tokenizer: Send + Sync {
    /// Each text's ids, `prompt` before it, special tokens included, cut to `truncation`.
    ///
    /// # Errors
    /// When a text cannot be tokenised.
    fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, EngineError>;

    /// One text's tokens, not cut, with the piece of text each stands for.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, EngineError>;

    /// How many different ids there are.
    fn vocabulary_size(&self) -> usize;

    /// The piece of text that an id stands for, in the tokenizer's own spelling.
    fn piece(&self, id: u32) -> Option<String>;
}

/// A token and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The piece of text, or the token's name if it is special.
    pub text: String,
    /// Whether the model's template put it there.
    pub special: bool,
    /// Where the piece starts, in characters of prompt and text; `None` for special tokens.
    pub start: Option<usize>,
    /// Where the piece ends.
    pub stop: Option<usize>,
}

/// A loaded model.
pub struct Model {
    /// Its facts.
    pub card: ModelCard,
    /// What reads texts.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// What computes.
    pub engine: Box<dyn Engine>,
}
