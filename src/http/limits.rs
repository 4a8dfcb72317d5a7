//! The bounds of the service: nothing a client sends, holds or waits for is without one.

use std::time::Duration;

use super::memory::Memory;
use super::reload::Reload;
use super::tls::Tls;
use super::traces::Traces;
use crate::access::Access;

/// The most texts a request can be allowed to have: past it, a body's items are counted but not kept.
pub const BATCH_TEXTS_CEILING: usize = 65_536;

/// What to do with token ids in place of texts, which the OpenAI dialect allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenInputs {
    /// Refuse them: clients send ids of OpenAI's tokenizers, which are not the served model's.
    #[default]
    Reject,
    /// Take them as ids of the served model's own tokenizer, special tokens included.
    Own,
}

/// What computing costs, to tell what the cache saves.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    /// Of a million tokens.
    pub per_million_tokens: f64,
    /// In which currency: its three letters, as ISO 4217 has them.
    pub currency: String,
}

/// The service's limits and choices.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most texts a request may have (`max_client_batch_size`). At most [`BATCH_TEXTS_CEILING`].
    pub batch_texts_max: usize,
    /// Whether texts that are too long are cut when the request does not say (`auto_truncate`).
    pub auto_truncate: bool,
    /// What to do with token ids in place of texts.
    pub token_inputs: TokenInputs,
    /// The largest body of a request.
    pub body_bytes_max: usize,
    /// The most memory for all requests' bodies together, but of those that wait for the model; a request waits until
    /// there is room for its own. One without a length counts as the largest. A quarter is kept for small ones.
    pub request_memory_bytes_max: usize,
    /// The most memory for all answers together that are being built and sent, at 12 bytes a number, but of those that
    /// waited for the model; a request waits until there is room for its answer. A quarter is kept for small ones.
    pub answer_memory_bytes_max: usize,
    /// The most memory for bodies and answers of all requests together that wait for the model; past it they are refused.
    pub waiting_memory_bytes_max: usize,
    /// The most connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// The most headers of a request.
    pub headers_max: usize,
    /// The most bytes of a request's headers, and what a connection may buffer. At least 8 KiB.
    pub header_bytes_max: usize,
    /// How long a request's headers, and before them a TLS handshake, may take to arrive, counted from the end of the answer before: so also how
    /// long an unused connection is kept.
    pub header_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long a connection on which nothing is being answered may stay silent.
    pub idle_timeout: Duration,
    /// How long a client may take none of the bytes sent to it; and how long, with a second for every 64 KiB, for all of an answer.
    pub write_timeout: Duration,
    /// How long a request may take when it does not say (`x-request-timeout`).
    pub request_timeout: Duration,
    /// The longest a request may ask to wait; longer wishes count as this.
    pub request_timeout_max: Duration,
    /// How long accepted requests may take to finish once the service is told to stop.
    pub drain_timeout: Duration,
    /// The most requests at once on one HTTP/2 connection.
    pub http2_streams_max: u32,
    /// What computing costs, if that is to be told.
    pub price: Option<Price>,
    /// Who may do what.
    pub access: Access,
    /// Whether `/metrics` needs no key; only on the admin listener if `None`.
    pub metrics_open: Option<bool>,
    /// The certificate that connections begin with; none: they are in the clear.
    pub tls: Option<Tls>,
    /// How often its files are looked at.
    pub tls_look_every: Duration,
    /// How the configuration is read again, where there is one.
    pub reload: Option<Reload>,
    /// What makes and sends traces of requests, where they are wanted.
    pub traces: Option<Traces>,
}

impl Config {
    /// The largest body that there is room for in so much memory for bodies.
    #[must_use]
    pub fn largest_body_bytes(request_memory_bytes_max: usize) -> usize {
        Memory::large_bytes(request_memory_bytes_max)
    }
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            batch_texts_max: 2048,
            auto_truncate: true,
            token_inputs: TokenInputs::Reject,
            body_bytes_max: 32 * MIB,
            request_memory_bytes_max: 256 * MIB,
            answer_memory_bytes_max: 256 * MIB,
            waiting_memory_bytes_max: 256 * MIB,
            connections_max: 4096,
            headers_max: 100,
            header_bytes_max: 64 << 10,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            request_timeout_max: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(30),
            http2_streams_max: 128,
            price: None,
            access: Access::default(),
            metrics_open: None,
            tls: None,
            tls_look_every: Duration::from_secs(10),
            reload: None,
            traces: None,
        }
    }
}
