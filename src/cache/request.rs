//! What is asked and what is answered.

use std::borrow::Cow;
use std::time::Duration;

use half::f16;

use super::reuse::Reused;
use crate::domain::{Key, Lane, Namespace, Status, TruncationDirection};
use crate::reuse::{Refusal, Terms};

/// What to embed.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// Texts.
    Texts(&'a [Cow<'a, str>]),
    /// Token ids of the served model, special tokens included.
    Tokens(&'a [Vec<u32>]),
}

impl Inputs<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(sequences) => sequences.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a request uses the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Answer from the cache, compute and store what is missing.
    #[default]
    Use,
    /// Compute everything, store nothing.
    Bypass,
    /// Compute everything, replace what is stored.
    Refresh,
    /// Answer from the cache, fail if anything is missing.
    Only,
}

/// A request for embeddings.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What to embed, in order.
    pub inputs: Inputs<'a>,
    /// Whose part of the cache.
    pub namespace: Namespace,
    /// Which of the model's prompts to put before each text; the model's default if `None`.
    pub prompt_name: Option<&'a str>,
    /// Whether a text that is too long is cut (else it is an error).
    pub truncate: bool,
    /// Which end is cut; the model's own if `None`.
    pub direction: Option<TruncationDirection>,
    /// How the cache is used.
    pub mode: Mode,
    /// How long a newly stored entry lives, to the second; as the policies say if `None`.
    pub ttl: Option<Duration>,
    /// Kept with newly stored entries.
    pub tags: &'a [String],
    /// JSON kept with newly stored entries.
    pub payload: Payload<'a>,
    /// Whether newly stored entries stay when room is needed; as the policies say if `None`.
    pub pinned: Option<bool>,
    /// In which lane what has to be computed waits.
    pub lane: Lane,
    /// When a near-duplicate's vector will do; as the policies say (never, unless they say so) if `None`.
    pub reuse: Option<Terms>,
}

/// JSON texts to keep with entries, at most [`PAYLOAD_BYTES_MAX`](crate::store::PAYLOAD_BYTES_MAX) bytes each.
#[derive(Clone, Copy, Debug, Default)]
pub enum Payload<'a> {
    /// None.
    #[default]
    None,
    /// One for all inputs.
    Same(&'a str),
    /// One for each input, in their order; inputs past the end have none.
    Each(&'a [Option<String>]),
}

impl<'a> Payload<'a> {
    /// One input's payload.
    #[must_use]
    pub fn of(&self, index: usize) -> Option<&'a str> {
        match self {
            Self::None => None,
            Self::Same(payload) => Some(payload),
            Self::Each(payloads) => payloads.get(index)?.as_deref(),
        }
    }
}

impl<'a> Request<'a> {
    /// A request with every option at its default: cut long texts, use the cache, keep for as long as the policies say; one
    /// input is a query, several are ingested.
    #[must_use]
    pub fn new(inputs: Inputs<'a>) -> Self {
        Self {
            inputs,
            namespace: Namespace::default(),
            prompt_name: None,
            truncate: true,
            direction: None,
            mode: Mode::Use,
            ttl: None,
            tags: &[],
            payload: Payload::None,
            pinned: None,
            lane: Lane::of_inputs(inputs.len()),
            reuse: None,
        }
    }
}

/// The embeddings of a request's inputs, in their order.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Length of a vector.
    pub dims: usize,
    /// The unit vectors, row after row: `items.len() × dims` values.
    pub units: Vec<f16>,
    /// What is known of each.
    pub items: Vec<Item>,
    /// How fresh the hits are.
    pub freshness: Freshness,
    /// Inputs that were answered with another text's vector, in their order.
    pub reused: Vec<Reused>,
    /// Why the others, for which that was allowed, were not: the commonest reason.
    pub not_reused: Option<Refusal>,
    /// Where the time went.
    pub timings: Timings,
}

impl Answer {
    /// One input's unit vector.
    #[must_use]
    pub fn unit(&self, index: usize) -> &[f16] {
        &self.units[index * self.dims..][..self.dims]
    }

    /// How many items have the given status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.items.iter().filter(|item| item.status == status).count()
    }
}

/// How fresh what came from the cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Seconds until the first of the hits expires; `None` if none does.
    pub ttl: Option<u32>,
    /// Hits that are marked stale: each is computed anew in the background.
    pub stale: usize,
    /// Whether nothing was looked up, because the request or the switch says so.
    pub bypassed: bool,
}

/// What is known of one answered input.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Its key.
    pub key: Key,
    /// Where its vector came from.
    pub status: Status,
    /// Its length in tokens, as the model reads it.
    pub tokens: u32,
    /// Whether it was cut to that length.
    pub truncated: bool,
    /// The norm of the model's vector before it was scaled to one.
    pub norm: f32,
}

/// Where a request's time went. Stages of several texts overlap: each figure is the longest of its texts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Hashing.
    pub key: Duration,
    /// Looking up and copying out.
    pub store: Duration,
    /// Tokenising.
    pub tokenize: Duration,
    /// Looking for a near-duplicate.
    pub reuse: Duration,
    /// Asking the shared tier, and waiting for another machine to compute.
    pub remote: Duration,
    /// Waiting for the engine.
    pub queue: Duration,
    /// The engine.
    pub inference: Duration,
    /// Storing.
    pub write: Duration,
}
