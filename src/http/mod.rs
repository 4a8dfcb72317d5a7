//! The service: HTTP in three dialects (text-embeddings-inference, OpenAI, ours) over one cache a model.
//!
//! ```text
//! connection ─► limits (headers, time, count) ─► route ─► id, deadline ─► body (bounded) ─► cache ─► shape ─► encoding
//! ```
//!
//! Promises: a cached answer and a computed one are the same bytes but for headers; an answer keeps the order of its
//! inputs; every refusal names what to change, in the shape the client's dialect expects; no client can make the
//! service hold more memory, connections or time than [`Config`] allows; told to stop, it finishes what it accepted.
//! Never logs or echoes a text but to the client that sent it.

mod accept;
mod body;
mod call;
mod connection;
mod conversation;
mod embed;
pub mod encode;
mod entries;
mod erase;
mod errors;
mod events;
mod headers;
mod invalidate;
mod latency;
mod limits;
mod lookup;
mod memory;
mod metrics;
mod migrations;
pub mod numbers;
mod openai;
mod openapi;
mod operations;
mod page;
mod pipeline;
mod quota;
mod reload;
mod route;
mod routes;
mod search;
mod server;
mod shape;
mod switch;
mod tls;
mod tokenize;
mod traces;
mod unsent;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::cache::Catalogue;

pub use limits::{BATCH_TEXTS_CEILING, Config, Price, TokenInputs};
pub use reload::{Reload, Reloaded};
pub use routes::router;
pub use server::{Listeners, serve};
pub use tls::{Tls, TlsError};
pub use traces::{Traces, TracesConfig, TracesError};

use latency::Latency;
use memory::Memory;
use metrics::Metrics;

/// What all requests share. Cloning is cheap, and all clones are one service.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    /// Whether it is asked by the operators' own listener.
    is_admin: bool,
}

struct Shared {
    catalogue: Catalogue,
    config: Config,
    metrics: Metrics,
    latency: Latency,
    registry: Registry,
    request_memory: Memory,
    answer_memory: Memory,
    waiting_memory: Memory,
    draining: AtomicBool,
    /// Tells those who wait for something else that draining begins.
    drain_begins: Notify,
    openapi: Bytes,
    started_unix: u64,
    /// What tenants' accounts count time from.
    began: tokio::time::Instant,
}

impl Service {
    /// A service over one cache or several, with its own metrics beside theirs.
    #[must_use]
    pub fn new(models: impl Into<Catalogue>, config: Config) -> Self {
        let catalogue = models.into();
        numbers::prepare();
        let metrics = Metrics::new();
        let mut registry = Registry::with_prefix("vecmemo");
        metrics::register_models(&catalogue, &mut registry);
        metrics.register(&mut registry, &config.access);
        let openapi = openapi::document(&catalogue, &config);
        let shared = Shared {
            request_memory: Memory::new(config.request_memory_bytes_max),
            answer_memory: Memory::new(config.answer_memory_bytes_max),
            waiting_memory: Memory::new(config.waiting_memory_bytes_max),
            draining: AtomicBool::new(false),
            drain_begins: Notify::new(),
            openapi,
            started_unix: unix_seconds(),
            began: tokio::time::Instant::now(),
            catalogue,
            config,
            metrics,
            latency: Latency::new(),
            registry,
        };
        Self { shared: Arc::new(shared), is_admin: false }
    }

    /// From now on new work is refused, `/ready` says no, and every answer closes its connection.
    pub fn start_draining(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.drain_begins.notify_waiters();
    }

    /// Ends when draining begins.
    async fn draining(&self) {
        let begins = self.shared.drain_begins.notified();
        if !self.is_draining() {
            begins.await;
        }
    }

    fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
