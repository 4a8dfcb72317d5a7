//! Puts model, store, batcher and cache together.

use anyhow::Context;

use crate::batch::Embedder;
use crate::cache::Cache;
use crate::config::Settings;
use crate::engine;
use crate::store::Store;

/// Loads the model and opens its store.
pub(super) fn cache(settings: &Settings) -> anyhow::Result<Cache> {
    let model = engine::open(&settings.model, &settings.sources)?;
    let store = Store::open(&settings.data_dir, &model.card.version, model.card.dims, &settings.store)
        .with_context(|| format!("cannot open the store in {}", settings.data_dir.display()))?;
    Ok(Cache::new(store, Embedder::start(model, settings.batch.clone())))
}

/// The runtime of the commands that need one. Tokenising runs on its blocking threads: a few are enough for all cores,
/// and more would only wait in memory.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_name("vecmemo-http")
        .build()
        .context("cannot start the async runtime")
}
