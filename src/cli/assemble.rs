//! Puts models, stores, batchers and caches together.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, anyhow};

use crate::batch::Embedder;
use crate::cache::{self, Cache, Catalogue, CatalogueError, Eraser, SharedTier};
use crate::config::{ModelSettings, Settings};
use crate::domain::ModelCard;
use crate::engine::{self, Described, Model, Residents};
use crate::remote::{self, Tier};
use crate::store::{Folder, ReadOnly, StoreError};

/// The cache of the one model that a command is about. Its weights are loaded when something has to be computed.
pub(super) fn cache(settings: &Settings) -> anyhow::Result<Cache> {
    let folder = hold(&settings.data_dir)?;
    let residents = Residents::new(settings.models_memory_bytes_max);
    let model = settings.default_model();
    let tier = tier(settings)?;
    let cache = cache_of(residents.add(describe(model)?, None)?, model, &folder, settings, tier.as_ref())?;
    let eraser = Eraser::new(&folder);
    eraser.resume(std::slice::from_ref(&cache));
    let cache = cache.with_eraser(eraser);
    tier.iter().for_each(SharedTier::begin);
    Ok(cache)
}

/// The same for a command that only looks: it makes no folder where there is none.
pub(super) fn cache_that_is_there(settings: &Settings) -> anyhow::Result<Cache> {
    let spaces = if settings.data_dir.exists() { ReadOnly::spaces(&settings.data_dir)? } else { Vec::new() };
    if spaces.is_empty() { Err(no_cache(&settings.data_dir)) } else { cache(settings) }
}

/// That a folder is not one of ours.
pub(super) fn no_cache(folder: &Path) -> anyhow::Error {
    anyhow!("there is no cache in {}: name its folder with --data-dir", folder.display())
}

/// The caches of all models. The default one's weights are loaded now, the others' when something has to be computed.
pub(super) fn catalogue(settings: &Settings) -> anyhow::Result<Catalogue> {
    catalogue_of(settings, true)
}

/// The same, with all weights loaded only when something has to be computed.
pub(super) fn unloaded_catalogue(settings: &Settings) -> anyhow::Result<Catalogue> {
    catalogue_of(settings, false)
}

fn catalogue_of(settings: &Settings, loads: bool) -> anyhow::Result<Catalogue> {
    let folder = hold(&settings.data_dir)?;
    let residents = Residents::new(settings.models_memory_bytes_max);
    let tier = tier(settings)?;
    let mut caches = Vec::with_capacity(settings.models.len());
    let mut seen: Vec<ModelCard> = Vec::new();
    if settings.cache.search.enabled {
        settings.cache.search.device.check().context("searches (choose another device with --search-device)")?;
    }
    for model in &settings.models {
        let described = describe(model)?;
        let card = described.card.clone();
        if let Some(same) = seen.iter().find(|other| other.version == card.version) {
            return Err(CatalogueError::SameModel {
                first: same.name.clone(),
                second: card.name,
                fingerprint: card.version.to_string(),
            }
            .into());
        }
        let loaded = if caches.is_empty() && loads {
            residents.add_loaded(described, model.idle)?
        } else {
            residents.add(described, model.idle)?
        };
        seen.push(card);
        caches.push(cache_of(loaded, model, &folder, settings, tier.as_ref())?);
    }
    let catalogue = Catalogue::kept_in(folder, caches)?;
    catalogue.set_event_rules(settings.events.clone());
    // Last: what was erased elsewhere while this was not there is told at once, to those that can erase it here.
    tier.iter().for_each(SharedTier::begin);
    Ok(catalogue)
}

/// What a model is, under the name that it is served by.
pub(super) fn describe(model: &ModelSettings) -> anyhow::Result<Described> {
    let mut described = engine::describe(&model.source, &model.sources, &model.engine)?;
    if let Some(name) = &model.name {
        described.card.name.clone_from(name);
    }
    Ok(described)
}

fn hold(data_dir: &Path) -> anyhow::Result<Folder> {
    Folder::hold(data_dir).map_err(|error| not_opened(error, data_dir))
}

fn cache_of(
    model: Model,
    of: &ModelSettings,
    folder: &Folder,
    settings: &Settings,
    tier: Option<&SharedTier>,
) -> anyhow::Result<Cache> {
    let store = folder
        .open(&model.card.version, model.card.dims, &of.store)
        .map_err(|error| not_opened(error, &settings.data_dir))?;
    let config = cache::Config { tier: tier.cloned(), ..settings.cache.clone() };
    Ok(Cache::with(store, Embedder::start(model, settings.batch.clone()), config))
}

/// Begins to connect to the tier shared with other machines, if there is one.
fn tier(settings: &Settings) -> anyhow::Result<Option<SharedTier>> {
    let start = |(url, config): &(remote::Url, remote::Config)| Ok(SharedTier::new(Tier::start(url, config.clone())?));
    settings.remote.as_ref().map(start).transpose()
}

fn not_opened(error: StoreError, data_dir: &Path) -> anyhow::Error {
    let advice = advice(&error);
    anyhow::Error::new(error).context(format!("cannot open the store in {}{advice}", data_dir.display()))
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
