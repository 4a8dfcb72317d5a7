//! Puts model, store, batcher and cache together.

use std::io::ErrorKind;

use anyhow::Context;

use crate::batch::Embedder;
use crate::cache::Cache;
use crate::config::Settings;
use crate::engine;
use crate::store::{Store, StoreError};

/// Loads the model and opens its store.
pub(super) fn cache(settings: &Settings) -> anyhow::Result<Cache> {
    let model = engine::open(&settings.model, &settings.sources)?;
    let store =
        Store::open(&settings.data_dir, &model.card.version, model.card.dims, &settings.store).map_err(|error| {
            let advice = advice(&error);
            anyhow::Error::new(error)
                .context(format!("cannot open the store in {}{advice}", settings.data_dir.display()))
        })?;
    Ok(Cache::with(store, Embedder::start(model, settings.batch.clone()), settings.cache.clone()))
}

/// What to do about a store that cannot be opened, where its own message does not say.
fn advice(error: &StoreError) -> &'static str {
    let StoreError::Io { source, .. } = error else { return "" };
    match source.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            " (the server writes to it: choose another folder with --data-dir, or make this one writable)"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            " (the disk is full: make room, or choose another folder with --data-dir)"
        }
        _ => "",
    }
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
