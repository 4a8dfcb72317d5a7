//! Several models in one process, each with a cache of its own: which one a request means.
//!
//! A model is named by an alias, by its source or by its fingerprint, in this order; named by nothing it is the default
//! alias's. Aliases are what clients send; each model has one of its own name at first. What an alias stands for can be
//! changed in one step while requests run: a request is resolved once, at its beginning, and ends under what it began with.
//! A change is on disk before it is one, so a restart keeps it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::erasure::{Eraser, Erasure, ErasureCollector, ErasureError, Receipt};
use super::events::{Event, EventRules, Reaction};
use super::remote::TierCollector;
use super::{Cache, Error, Invalidated, Migration};
use crate::domain::{ModelVersion, Reach};
use crate::remote::Handled;
use crate::store::{Folder, StoreError};

/// The file in the data folder that says what aliases stand for, where that is not their own model.
const ALIASES_FILE: &str = "aliases.json";

/// How long requests that began before may keep a model from being deleted, and how often that is looked at.
const DELETED_WITHIN: Duration = Duration::from_secs(30);
const DELETED_POLL: Duration = Duration::from_millis(10);

/// The served models. Cloning is cheap, and all clones are one catalogue.
#[derive(Clone)]
pub struct Catalogue {
    inner: Arc<Inner>,
}

struct Inner {
    /// Replaced as a whole.
    table: RwLock<Arc<Table>>,
    /// Held by whoever replaces it.
    changing: Mutex<()>,
    folder: Option<Folder>,
    /// Where there is a folder.
    eraser: Option<Arc<Eraser>>,
    /// What is invalidated for which events. Replaced as a whole.
    event_rules: RwLock<Arc<EventRules>>,
}

/// What events came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reacted {
    /// Rules that had something to do with them, one counted for each event.
    pub rules: usize,
    /// What was invalidated.
    pub invalidated: Invalidated,
}

/// What is served at one moment.
#[derive(Clone)]
struct Table {
    /// In the order they were given.
    models: Vec<Served>,
    /// What clients may ask for, and the model that answers it.
    aliases: BTreeMap<Arc<str>, ModelVersion>,
    /// The alias of those who name none.
    default: Arc<str>,
    /// By the alias they were begun for.
    migrations: BTreeMap<Arc<str>, Arc<Migration>>,
    /// Models that were taken out to be deleted.
    retired: BTreeMap<Arc<str>, ModelVersion>,
}

/// A cache, and the name it was asked for by.
#[derive(Clone)]
pub struct Served {
    /// The alias.
    pub alias: Arc<str>,
    /// What answers.
    pub cache: Cache,
    /// What wants to know what is asked of it.
    pub migration: Option<Arc<Migration>>,
}

/// Why models cannot be served together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// There is none.
    #[error("there is no model to serve")]
    Empty,
    /// Two models under one name.
    #[error("two models are named {0:?}: give one of them another name")]
    SameName(String),
    /// One model twice: its entries are one cache.
    #[error("{first:?} and {second:?} are the same model (fingerprint {fingerprint}): serve it once")]
    SameModel {
        /// The one's name.
        first: String,
        /// The other's.
        second: String,
        /// What they share.
        fingerprint: String,
    },
    /// An alias was switched to a model that is not among those to be served.
    #[error(
        "{alias:?} was switched to a model (fingerprint {fingerprint}) that is not configured: serve that one as well, or remove \
         {ALIASES_FILE} from the data folder to have {alias:?} answered by the model of that name again"
    )]
    AliasOfAbsent {
        /// The alias.
        alias: String,
        /// What it stands for.
        fingerprint: String,
    },
    /// The file of aliases is not what it should be.
    #[error(
        "{ALIASES_FILE} in the data folder cannot be read ({0}): remove it, and each name is answered by the model of that name"
    )]
    Aliases(String),
    /// The data folder cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a change of what is served was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Nothing has that name.
    #[error("there is no {what} {name:?}; there is {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A migration from a model to itself.
    #[error("{alias:?} is answered by {model:?} already")]
    SameModel {
        /// The alias.
        alias: String,
        /// What answers it.
        model: String,
    },
    /// One that cannot begin beside another.
    #[error("a migration of {alias:?} to {to:?} is running: stop it first")]
    Migrating {
        /// The alias.
        alias: String,
        /// Where to.
        to: String,
    },
    /// A model that is needed.
    #[error("the model {model:?} is used by {by}: it cannot be deleted")]
    InUse {
        /// The model.
        model: String,
        /// By what.
        by: String,
    },
    /// Requests that began before still hold it.
    #[error(
        "the model {model:?} answers no more, but requests that began before are still under way: ask again to have its files removed"
    )]
    StillUsed {
        /// The model.
        model: String,
    },
    /// Nowhere to keep what an alias stands for.
    #[error("the models are not kept in one data folder: what they are called cannot be changed")]
    NoFolder,
    /// The data folder refused.
    #[error("the data folder refused: {0}")]
    Store(#[from] StoreError),
}

/// The file of aliases.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Fingerprints by alias.
    aliases: BTreeMap<String, String>,
}

impl Catalogue {
    /// Serves models under the names on their cards. The first is the default.
    ///
    /// # Errors
    /// When there are none, two have one name, or two are the same.
    pub fn new(caches: Vec<Cache>) -> Result<Self, CatalogueError> {
        Self::with(caches, None)
    }

    /// As [`Catalogue::new`], with what aliases were switched to kept in the folder that the models' entries are in.
    ///
    /// # Errors
    /// As [`Catalogue::new`]; and when the folder cannot be read, or has an alias of a model that is not here.
    pub fn kept_in(folder: Folder, caches: Vec<Cache>) -> Result<Self, CatalogueError> {
        Self::with(caches, Some(folder))
    }

    fn with(caches: Vec<Cache>, folder: Option<Folder>) -> Result<Self, CatalogueError> {
        let served = |cache: Cache| Served { alias: cache.card().name.as_str().into(), cache, migration: None };
        let models: Vec<Served> = caches.into_iter().map(served).collect();
        let mut aliases = BTreeMap::new();
        for (place, model) in models.iter().enumerate() {
            let version = model.version();
            if aliases.insert(Arc::clone(&model.alias), version).is_some() {
                return Err(CatalogueError::SameName(model.alias.to_string()));
            }
            if let Some(other) = models[..place].iter().find(|other| other.version() == version) {
                return Err(CatalogueError::SameModel {
                    first: other.alias.to_string(),
                    second: model.alias.to_string(),
                    fingerprint: version.to_string(),
                });
            }
        }
        if let Some(folder) = &folder {
            take_kept(folder, &models, &mut aliases)?;
        }
        let default = Arc::clone(&models.first().ok_or(CatalogueError::Empty)?.alias);
        let (migrations, retired) = (BTreeMap::new(), BTreeMap::new());
        let table = RwLock::new(Arc::new(Table { models, aliases, default, migrations, retired }));
        let event_rules = RwLock::default();
        let eraser = folder.as_ref().map(Eraser::new);
        let catalogue =
            Self { inner: Arc::new(Inner { table, changing: Mutex::default(), folder, eraser, event_rules }) };
        if let Some(eraser) = &catalogue.inner.eraser {
            eraser.resume(&catalogue.caches());
        }
        Ok(catalogue)
    }

    /// What answers a request that names this model, or none. `None`: nothing of that name is served.
    #[must_use]
    pub fn resolve(&self, asked: Option<&str>) -> Option<Served> {
        let table = self.table();
        let Some(asked) = asked else { return table.of_alias(&table.default) };
        table.of_alias(asked).or_else(|| {
            let by_source = table.models.iter().find(|model| model.cache.card().source == asked);
            let by_version = || table.models.iter().find(|model| model.version().to_string() == asked);
            by_source.or_else(by_version).map(|model| table.watched(Arc::clone(&model.alias), model))
        })
    }

    /// What answers a request that names no model.
    #[must_use]
    pub fn default(&self) -> Served {
        self.resolve(None).expect("the default is an alias, and every alias has a model")
    }

    /// Each model under its own name, the one that answers by default first.
    #[must_use]
    pub fn models(&self) -> Vec<Served> {
        let first = self.default().version();
        let mut models = self.table().models.clone();
        models.sort_by_key(|model| model.version() != first);
        models
    }

    /// Every alias with what answers it, in the order of the names.
    #[must_use]
    pub fn aliases(&self) -> Vec<Served> {
        let table = self.table();
        table.aliases.keys().filter_map(|alias| table.of_alias(alias)).collect()
    }

    /// What answers an alias.
    ///
    /// # Errors
    /// When there is no such alias.
    pub fn of_alias(&self, alias: &str) -> Result<Served, ChangeError> {
        let table = self.table();
        table.of_alias(alias).ok_or_else(|| table.unknown_alias(alias))
    }

    /// Has an alias answered by a model, named by its own name, source or fingerprint, from now on: when this returns no
    /// request begins under another. Blocks for a sync of the disk.
    ///
    /// # Errors
    /// When one of the two is not known, or the folder cannot be written.
    pub fn switch(&self, alias: &str, model: &str) -> Result<(), ChangeError> {
        let _changing = self.lock();
        let mut table = Table::clone(&self.table());
        let folder = self.inner.folder.as_ref().ok_or(ChangeError::NoFolder)?;
        let version = table.model(model)?.version();
        let Some((_, stands_for)) = table.aliases.iter_mut().find(|(name, _)| &***name == alias) else {
            return Err(table.unknown_alias(alias));
        };
        *stands_for = version;
        let is_own = |(name, version): &(&Arc<str>, &ModelVersion)| {
            table.models.iter().any(|model| model.alias == **name && model.version() == **version)
        };
        let switched = table.aliases.iter().filter(|alias| !is_own(alias));
        let aliases = switched.map(|(name, version)| (name.to_string(), version.to_string())).collect();
        let bytes = serde_json::to_vec_pretty(&Kept { aliases }).expect("names are strings");
        folder.keep(ALIASES_FILE, &bytes)?;
        self.replace(table);
        Ok(())
    }

    /// Adds the metrics of the tier that is shared with other machines, if there is one, to a registry.
    pub fn register_tier(&self, registry: &mut Registry) {
        if let Some(tier) = self.default().cache.tier() {
            registry.register_collector(Box::new(TierCollector(tier.clone())));
        }
    }

    /// Adds the metrics of erasures to a registry.
    pub fn register_erasures(&self, registry: &mut Registry) {
        if let Some(eraser) = &self.inner.eraser {
            registry.register_collector(Box::new(ErasureCollector(Arc::clone(eraser))));
        }
    }

    /// Erases entries, and every trace of them, in all models or one. Blocks until that is on the medium. Models do not come or go
    /// meanwhile.
    ///
    /// # Errors
    /// When it could not be completed yet, or the models have no folder in common.
    pub fn erase(&self, erasure: &Erasure) -> Result<Receipt, Error> {
        let _changing = self.lock();
        self.eraser()?.erase(&self.caches(), erasure)
    }

    /// What erases, and has the receipts.
    ///
    /// # Errors
    /// When the models have no folder in common.
    pub fn eraser(&self) -> Result<&Arc<Eraser>, Error> {
        Ok(self.inner.eraser.as_ref().ok_or(ErasureError::NoFolder)?)
    }

    /// The models' caches.
    fn caches(&self) -> Vec<Cache> {
        self.table().models.iter().map(|model| model.cache.clone()).collect()
    }

    /// Has these rules say from now on what events invalidate.
    pub fn set_event_rules(&self, rules: EventRules) {
        *self.inner.event_rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Invalidates what the rules say of events, as far as it is in reach. All are looked at before anything is done; what is done is the same when it is done
    /// again. A model that a rule names and nobody serves has nothing to invalidate. Blocks.
    ///
    /// # Errors
    /// When a rule can do nothing with an event; then nothing is done. When a store refuses; then not all is done.
    pub fn react(&self, events: &[Event], reach: &Reach) -> Result<Reacted, Error> {
        let rules = Arc::clone(&self.inner.event_rules.read().unwrap_or_else(PoisonError::into_inner));
        let mut reactions = Vec::new();
        for event in events {
            reactions.extend(rules.reactions(event)?);
        }
        let mut reacted = Reacted { rules: reactions.len(), ..Reacted::default() };
        for Reaction { model, invalidation } in reactions {
            let Some(invalidation) = invalidation.within(reach) else { continue };
            let models = match &model {
                None => self.models(),
                Some(name) => self.resolve(Some(name)).into_iter().collect(),
            };
            for model in models {
                reacted.invalidated = reacted.invalidated + model.cache.invalidate(&invalidation)?;
            }
        }
        Ok(reacted)
    }

    /// Does what the rules say of an event that came by a stream, given as the entry's fields.
    pub fn handle(&self, fields: &[(String, Vec<u8>)]) -> Handled {
        let event = match Event::from_fields(fields) {
            Ok(event) => event,
            Err(problem) => return Handled::Refused(problem),
        };
        match self.react(std::slice::from_ref(&event), &Reach::everything()) {
            Ok(Reacted { rules, invalidated }) => {
                let Invalidated { matched, removed, .. } = invalidated;
                tracing::info!(action = "react", kind = event.kind, rules, matched, removed, "changed");
                Handled::Done
            }
            Err(Error::Event(problem)) => Handled::Refused(problem.to_string()),
            Err(error) => Handled::Later(error.to_string()),
        }
    }

    /// Begins to fill a model with what is asked of the one behind an alias. One that runs already is answered as it is.
    /// Needs a Tokio runtime.
    ///
    /// # Errors
    /// When one of the two is not known, they are the same, or another migration of the alias is running.
    pub fn migrate(&self, alias: &str, to: &str) -> Result<Arc<Migration>, ChangeError> {
        let _changing = self.lock();
        let mut table = Table::clone(&self.table());
        let from = table.of_alias(alias).ok_or_else(|| table.unknown_alias(alias))?;
        let to = table.model(to)?.clone();
        if let Some(running) = table.migrations.get(alias) {
            if running.to().card().version == to.version() && running.from().card().version == from.version() {
                return Ok(Arc::clone(running));
            }
            let to = running.to().card().name.clone();
            return Err(ChangeError::Migrating { alias: alias.to_owned(), to });
        }
        if from.version() == to.version() {
            return Err(ChangeError::SameModel { alias: alias.to_owned(), model: to.alias.to_string() });
        }
        let migration = Migration::start(from.cache, to.cache);
        table.migrations.insert(from.alias, Arc::clone(&migration));
        self.replace(table);
        Ok(migration)
    }

    /// The migrations that run, by their alias.
    #[must_use]
    pub fn migrations(&self) -> Vec<(Arc<str>, Arc<Migration>)> {
        let table = self.table();
        table.migrations.iter().map(|(alias, migration)| (Arc::clone(alias), Arc::clone(migration))).collect()
    }

    /// An alias's migration.
    ///
    /// # Errors
    /// When none runs.
    pub fn migration(&self, alias: &str) -> Result<Arc<Migration>, ChangeError> {
        let table = self.table();
        table.migrations.get(alias).cloned().ok_or_else(|| table.unknown_migration(alias))
    }

    /// Ends an alias's migration. What has been embedded stays.
    ///
    /// # Errors
    /// When none runs.
    pub fn stop_migration(&self, alias: &str) -> Result<(), ChangeError> {
        let _changing = self.lock();
        let mut table = Table::clone(&self.table());
        let Some(migration) = table.migrations.remove(alias) else { return Err(table.unknown_migration(alias)) };
        migration.stop();
        self.replace(table);
        Ok(())
    }

    /// Takes a model out and removes its entries from the disk. Answers how many bytes of it they occupied.
    ///
    /// # Errors
    /// When the model is not known, or an alias or a migration uses it, or requests that began before do for long, or the
    /// folder refuses.
    pub async fn delete(&self, model: &str) -> Result<u64, ChangeError> {
        let folder = self.inner.folder.clone().ok_or(ChangeError::NoFolder)?;
        let (name, version, served) = self.retire(model)?;
        if let Some(served) = served {
            // What it has accepted is finished; that its store may not be synced is no loss now.
            let _ = served.cache.drain().await;
            let dropping = tokio::task::spawn_blocking(move || drop(served));
            dropping.await.expect("dropping a drained cache does not panic");
        }
        let began = Instant::now();
        loop {
            let folder = folder.clone();
            let deleting = tokio::task::spawn_blocking(move || folder.delete(&version));
            match deleting.await.expect("deleting reports errors, it does not panic") {
                Err(StoreError::InUse { .. }) if began.elapsed() < DELETED_WITHIN => {
                    tokio::time::sleep(DELETED_POLL).await;
                }
                Err(StoreError::InUse { .. }) => return Err(ChangeError::StillUsed { model: name.to_string() }),
                Err(error) => return Err(error.into()),
                Ok(bytes) => {
                    let _changing = self.lock();
                    let mut table = Table::clone(&self.table());
                    table.retired.remove(&name);
                    self.replace(table);
                    return Ok(bytes);
                }
            }
        }
    }

    /// Takes a model out of what is served. `None`: that was done before.
    fn retire(&self, name: &str) -> Result<(Arc<str>, ModelVersion, Option<Served>), ChangeError> {
        let _changing = self.lock();
        let mut table = Table::clone(&self.table());
        if let Some((name, &version)) = table.retired.get_key_value(name) {
            return Ok((Arc::clone(name), version, None));
        }
        let model = table.model(name)?.clone();
        let version = model.version();
        let in_use = |by: String| ChangeError::InUse { model: model.alias.to_string(), by };
        if let Some((alias, _)) = table.aliases.iter().find(|(_, stands_for)| **stands_for == version) {
            return Err(in_use(format!("the alias {alias:?}")));
        }
        for (alias, migration) in &table.migrations {
            if [migration.from(), migration.to()].iter().any(|cache| cache.card().version == version) {
                return Err(in_use(format!("the migration of {alias:?}")));
            }
        }
        table.models.retain(|model| model.version() != version);
        table.retired.insert(Arc::clone(&model.alias), version);
        self.replace(table);
        Ok((Arc::clone(&model.alias), version, Some(model)))
    }

    /// Ends all models in order, as [`Cache::drain`] does each.
    ///
    /// # Errors
    /// When a store cannot be synced: the first error, after all have ended.
    pub async fn drain(&self) -> Result<(), Error> {
        for (_, migration) in self.migrations() {
            migration.stop();
        }
        let mut outcome = Ok(());
        for model in self.models() {
            outcome = outcome.and(model.cache.drain().await);
        }
        outcome
    }

    /// A table is replaced in one step: a panic cannot leave it half changed.
    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.inner.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only by whoever holds the lock.
    fn replace(&self, table: Table) {
        *self.inner.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served {
    fn version(&self) -> ModelVersion {
        self.cache.card().version
    }
}

impl Table {
    fn of_alias(&self, alias: &str) -> Option<Served> {
        let (alias, version) = self.aliases.get_key_value(alias)?;
        let model = self.models.iter().find(|model| model.version() == *version)?;
        Some(self.watched(Arc::clone(alias), model))
    }

    /// A model under a name, with who watches what is asked of it.
    fn watched(&self, alias: Arc<str>, model: &Served) -> Served {
        let watches = |migration: &&Arc<Migration>| migration.from().card().version == model.version();
        Served { alias, cache: model.cache.clone(), migration: self.migrations.values().find(watches).cloned() }
    }

    /// A model by what is its own: an alias of its name may stand for another.
    fn model(&self, name: &str) -> Result<&Served, ChangeError> {
        let by_name = self.models.iter().find(|model| &*model.alias == name);
        let own = |model: &&Served| model.cache.card().source == name || model.version().to_string() == name;
        by_name.or_else(|| self.models.iter().find(own)).ok_or_else(|| ChangeError::Unknown {
            what: "model",
            name: name.to_owned(),
            known: self.models.iter().map(|model| model.alias.to_string()).collect(),
        })
    }

    fn unknown_alias(&self, alias: &str) -> ChangeError {
        let known = self.aliases.keys().map(ToString::to_string).collect();
        ChangeError::Unknown { what: "alias", name: alias.to_owned(), known }
    }

    fn unknown_migration(&self, alias: &str) -> ChangeError {
        let known = self.migrations.keys().map(ToString::to_string).collect();
        ChangeError::Unknown { what: "migration of", name: alias.to_owned(), known }
    }
}

/// Has aliases stand for what the folder says.
fn take_kept(
    folder: &Folder,
    models: &[Served],
    aliases: &mut BTreeMap<Arc<str>, ModelVersion>,
) -> Result<(), CatalogueError> {
    let Some(bytes) = folder.kept(ALIASES_FILE)? else { return Ok(()) };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| CatalogueError::Aliases(error.to_string()))?;
    for (alias, fingerprint) in kept.aliases {
        let model = models.iter().find(|model| model.version().to_string() == fingerprint);
        match model {
            Some(model) => {
                aliases.insert(alias.as_str().into(), model.version());
            }
            // Clients who know the name would be given another model's vectors.
            None if aliases.contains_key(alias.as_str()) => {
                return Err(CatalogueError::AliasOfAbsent { alias, fingerprint });
            }
            None => tracing::warn!(alias, fingerprint, "an alias stands for a model that is not served: it is unknown"),
        }
    }
    Ok(())
}

impl From<Cache> for Catalogue {
    /// One model, under its own name.
    fn from(cache: Cache) -> Self {
        Self::new(vec![cache]).expect("one model has no other to be mistaken for")
    }
}
