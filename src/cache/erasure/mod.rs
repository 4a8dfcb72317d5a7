//! Erasure: entries whose every trace is to go, and a receipt that it has.
//!
//! ```text
//! choose ─► intent, synced ─► shared tier: told, records removed
//!                          ─► each model: records and rows zeroed, synced ─► what reuse has learnt ─► graph, kept answers
//!                          ─► side store written anew ─► receipt, synced ─► intent overwritten
//!              └─ killed anywhere ─► the next start goes on from here ─┘
//! told by another machine ─► the same, with a receipt of the same name
//! ```
//!
//! Promises: when the receipt is there no file of the folder has the row, its codes, its record, its key, its tags or its payload, nor those of any
//! entry that had gone before; an erasure that was begun is completed, whatever ends the process. What cannot be done, or only later, the
//! receipt names. The same again is another receipt, of nothing.
//!
//! Never: an entry that was not chosen is removed; a text, tag or key is written into a receipt, a notice's tags or the log.
//!
//! What is asked for while it is erased is asked for anew, and may be stored after it.

mod ledger;
mod receipt;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::{Deserialize, Serialize};

pub use ledger::{ExportLine, Ledger, Veiled, is_id};
pub use receipt::{ErasedKeys, KnownExport, Places, Receipt, Selected, TierState};

use super::{Cache, Error, Shared};
use crate::domain::{Key, ModelVersion, Namespace, veil};
use crate::remote::{self, NOTICE_KEYS_MAX, Notice, Tier};
use crate::store::{Folder, ReadOnly, Selector, StoreError, unix_seconds};

/// How often it is looked whether the shared tier can be told now.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Entries whose facts are asked for at a time.
const KEYS_AT_ONCE: usize = 4096;

/// What is to be erased, and who says so.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// Which entries.
    pub named: Named,
    /// Of one model only; of all if `None`.
    pub model: Option<ModelVersion>,
    /// Whether entries that have the same vector, which are other spellings of the same tokens, are erased with them.
    pub copies: bool,
    /// Who asks.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// Which entries are meant.
#[derive(Clone, Debug)]
pub enum Named {
    /// Those under these keys.
    Keys(Vec<Key>),
    /// Those of these texts, with whatever prompt, in a namespace.
    Texts(Vec<String>, Namespace),
    /// Those with one of these tags.
    Tags(Vec<String>),
    /// Those of this namespace.
    Namespace(Namespace),
}

/// Why an erasure could not be completed. It is gone on with by the next one, and by the next start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErasureError {
    /// The models have no folder in common.
    #[error("the models are not kept in one data folder: there is nowhere to keep receipts")]
    NoFolder,
    /// The folder of erasures refused.
    #[error("the folder of erasures could not be used: {0}")]
    Ledger(#[source] io::Error),
    /// A file of the graph could not be removed.
    #[error("a part of the graph could not be removed: {0}")]
    Graph(#[source] io::Error),
    /// What reuse has learnt could not be forgotten.
    #[error("what reuse has learnt could not be forgotten: {0}")]
    Reuse(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A model's part in an erasure.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) version: ModelVersion,
    pub(super) shared: Arc<Shared>,
}

impl Part {
    pub(super) fn of(cache: &Cache) -> Self {
        Self { version: cache.card().version, shared: Arc::clone(&cache.inner.shared) }
    }
}

/// What is being carried out, as it is kept until it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Intent {
    /// As far as it is known.
    receipt: Receipt,
    /// By the models' fingerprints, in hexadecimal.
    keys: BTreeMap<String, Vec<String>>,
    /// What others are told beside keys.
    namespace: Option<Namespace>,
    /// The one model that is meant, by its fingerprint.
    model: Option<String>,
    /// Whether others are to be told.
    tells: bool,
    /// Whether all that is left is to tell them.
    erased: bool,
    /// What another machine has told, until it is chosen what of it is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
}

/// What another machine has erased, in its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// In hexadecimal.
    keys: Vec<String>,
    /// Veiled.
    tags: Vec<String>,
    namespace: Option<Namespace>,
    /// The one model that is meant, by its fingerprint.
    model: Option<String>,
    /// What was stored here from this Unix second on is not meant.
    before: Option<u32>,
}

impl Intent {
    fn keys_of(&self, model: &ModelVersion) -> Vec<Key> {
        let keys = self.keys.get(&model.to_string());
        keys.into_iter().flatten().filter_map(|key| key.parse().ok()).collect()
    }

    fn all_keys(&self) -> HashSet<Key> {
        self.keys.values().flatten().filter_map(|key| key.parse().ok()).collect()
    }

    /// What other machines are told: first what is meant, then the keys of it that are known here.
    fn notices(&self) -> Vec<Notice> {
        let Receipt { id, selector, .. } = &self.receipt;
        let keys: Vec<Key> = self.all_keys().into_iter().collect();
        let mut parts = keys.chunks(NOTICE_KEYS_MAX);
        let tags = if selector.kind == "tags" { selector.veils.clone() } else { Vec::new() };
        let namespace = self.namespace.clone();
        let erasure = remote::Erasure { id: id.clone(), tags };
        // A fingerprint is 32 bytes in hexadecimal, as a key is.
        let model = self.model.as_deref().and_then(|model| model.parse::<Key>().ok());
        let model = model.map(|model| ModelVersion::from_bytes(*model.as_bytes()));
        let first = Notice {
            keys: parts.next().unwrap_or_default().to_vec(),
            namespace,
            model,
            erasure: Some(erasure),
            ..Notice::default()
        };
        let more = parts.zip(2..).map(|(keys, number)| Notice {
            keys: keys.to_vec(),
            model,
            erasure: Some(remote::Erasure { id: format!("{id}-{number}"), tags: Vec::new() }),
            ..Notice::default()
        });
        std::iter::once(first).chain(more).collect()
    }
}

/// Erases in one data folder, one erasure at a time.
pub struct Eraser {
    folder: Folder,
    work: Arc<Work>,
    teller: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread that tells others later needs too.
struct Work {
    ledger: Ledger,
    erasing: Mutex<()>,
    erasures: AtomicU64,
    entries: AtomicU64,
    pending: AtomicU64,
    stop: (Mutex<bool>, Condvar),
}

impl Eraser {
    /// For a folder. Nothing is done before [`Self::resume`].
    #[must_use]
    pub fn new(folder: &Folder) -> Arc<Self> {
        let work = Work {
            ledger: Ledger::of(folder.root()),
            erasing: Mutex::default(),
            erasures: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            stop: Default::default(),
        };
        Arc::new(Self { folder: folder.clone(), work: Arc::new(work), teller: Mutex::default() })
    }

    /// Completes what a former process has begun in these caches, and has them hear of other machines' erasures.
    pub fn resume(self: &Arc<Self>, caches: &[Cache]) {
        let parts: Vec<Part> = caches.iter().map(Part::of).collect();
        if let Some(tier) = parts.first().and_then(|part| part.shared.tier.as_ref()) {
            tier.set_eraser(self);
        }
        let _erasing = self.work.lock();
        self.complete_former(&parts);
        self.work.count_pending();
    }

    fn complete_former(self: &Arc<Self>, parts: &[Part]) {
        if let Err(error) = self.complete(parts, None) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "an erasure that was begun could not be completed: the next one and the next start try again"
            );
        }
    }

    /// The receipts and what belongs to them.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.work.ledger
    }

    /// Erases. `caches` are all that are open in the folder. Blocks until all is on the medium: for as long as it takes to read the rows
    /// that are not used and to write the side store anew.
    ///
    /// # Errors
    /// When it could not be completed: then it will be.
    pub(super) fn erase(self: &Arc<Self>, caches: &[Cache], erasure: &Erasure) -> Result<Receipt, Error> {
        let parts: Vec<Part> = caches.iter().map(Part::of).collect();
        let _erasing = self.work.lock();
        self.complete_former(&parts);
        let mut intent = Intent {
            receipt: Receipt::begun(&uuid::Uuid::new_v4().to_string()),
            keys: BTreeMap::new(),
            namespace: None,
            model: erasure.model.map(|model| model.to_string()),
            tells: true,
            erased: false,
            told: None,
        };
        let mut stored = Vec::new();
        for (cache, part) in caches.iter().zip(&parts) {
            if erasure.model.is_some_and(|model| model != part.version) {
                continue;
            }
            // What has been answered is stored.
            cache.inner.writer().flush();
            let store = &part.shared.store;
            let now = part.shared.now();
            store.settle(now)?;
            let mut keys: Vec<Key> = Vec::new();
            match &erasure.named {
                Named::Keys(named) => keys.clone_from(named),
                Named::Texts(texts, namespace) => keys = cache.keys_of_texts(namespace, texts),
                Named::Tags(tags) => {
                    for tag in tags {
                        keys.extend(store.select(&Selector::Tag(tag), now)?);
                    }
                }
                Named::Namespace(namespace) => keys = store.select(&Selector::Namespace(namespace), now)?,
            }
            let twins = store.twins(&keys, now);
            if erasure.copies {
                keys.extend(twins);
            } else {
                intent.receipt.same_vector += twins.len();
            }
            intent.add(part, keys, &mut stored);
        }
        let id = intent.receipt.id.clone();
        let veils = |kind: &str, values: &[&[u8]]| -> Vec<String> {
            values.iter().map(|value| veil(&id, kind, value)).collect()
        };
        let (kind, veils) = match &erasure.named {
            Named::Keys(keys) => {
                ("keys", veils("key", &keys.iter().map(|key| &key.as_bytes()[..]).collect::<Vec<_>>()))
            }
            Named::Texts(texts, _) => {
                ("inputs", veils("input", &texts.iter().map(|text| text.as_bytes()).collect::<Vec<_>>()))
            }
            Named::Tags(tags) => ("tags", veils("tag", &tags.iter().map(|tag| tag.as_bytes()).collect::<Vec<_>>())),
            Named::Namespace(name) => ("namespace", veils("namespace", &[name.as_str().as_bytes()])),
        };
        if let Named::Namespace(name) = &erasure.named {
            intent.namespace = Some(name.clone());
        }
        intent.receipt.selector = Selected { kind: kind.to_owned(), veils, copies: erasure.copies };
        intent.receipt.by.clone_from(&erasure.by);
        intent.receipt.reason.clone_from(&erasure.reason);
        self.begin(&mut intent, &stored)?;
        self.carry_out(&parts, intent, false)
    }

    /// Carries out what another machine has erased. `age` is how many seconds ago that was published, if that is certain.
    pub(super) fn heard(self: &Arc<Self>, parts: &[Part], notice: &Notice, age: Option<u32>) -> Result<(), Error> {
        let Some(erasure) = notice.erasure.as_ref().filter(|erasure| is_id(&erasure.id)) else { return Ok(()) };
        let _erasing = self.work.lock();
        // The log of notices may be read again.
        if self.work.ledger.receipt(&erasure.id).map_err(ErasureError::Ledger)?.is_some() {
            return Ok(());
        }
        let now = parts.first().map_or_else(unix_seconds, |part| part.shared.now());
        let mut receipt = Receipt::begun(&erasure.id);
        let kind = if erasure.tags.is_empty() { "keys" } else { "tags" };
        receipt.selector = Selected { kind: kind.to_owned(), veils: erasure.tags.clone(), copies: false };
        receipt.by = Some("another machine".to_owned());
        let told = Told {
            keys: notice.keys.iter().map(Key::to_string).collect(),
            tags: erasure.tags.clone(),
            namespace: notice.namespace.clone(),
            model: notice.model.map(|model| model.to_string()),
            before: age.map(|age| now.saturating_sub(age)),
        };
        let mut intent = Intent {
            receipt,
            keys: BTreeMap::new(),
            namespace: None,
            model: None,
            tells: false,
            erased: false,
            told: Some(told.clone()),
        };
        // First of all: it is told once. Whatever fails after this is tried again.
        let kept = self.begin(&mut intent, &[]).map_err(Error::from);
        let completed = kept.and_then(|()| self.complete(parts, Some(&erasure.id)));
        if completed.is_err() {
            // At least it is served no more.
            Self::choose(&mut intent, told, parts)?;
            for part in parts {
                part.shared.store.remove_many(&intent.keys_of(&part.version))?;
            }
        }
        completed
    }

    /// Chooses what is here of what another machine has told, and answers when that was stored.
    fn choose(intent: &mut Intent, told: Told, parts: &[Part]) -> Result<Vec<(String, u32)>, Error> {
        let erasure = remote::Erasure { id: intent.receipt.id.clone(), tags: told.tags };
        let named: Vec<Key> = told.keys.iter().filter_map(|key| key.parse().ok()).collect();
        let mut stored = Vec::new();
        let is_meant = |part: &&Part| told.model.as_ref().is_none_or(|model| *model == part.version.to_string());
        for part in parts.iter().filter(is_meant) {
            let store = &part.shared.store;
            let now = part.shared.now();
            store.settle(now)?;
            let mut keys = named.clone();
            for tag in store.tags_where(|tag| erasure.means(tag))? {
                keys.extend(store.select(&Selector::Tag(&tag), now)?);
            }
            if let Some(namespace) = &told.namespace {
                keys.extend(store.select(&Selector::Namespace(namespace), now)?);
            }
            if let Some(before) = told.before {
                let mut meant = Vec::with_capacity(keys.len());
                for keys in keys.chunks(KEYS_AT_ONCE) {
                    let entries = keys.iter().zip(store.contains_many(keys, now));
                    let is_old = entries.filter(|(_, entry)| entry.is_none_or(|entry| entry.created < before));
                    meant.extend(is_old.map(|(key, _)| *key));
                }
                keys = meant;
            }
            intent.add(part, keys, &mut stored);
        }
        Ok(stored)
    }

    /// Writes down what is to be done.
    fn begin(&self, intent: &mut Intent, stored: &[(String, u32)]) -> Result<(), ErasureError> {
        let ledger = &self.work.ledger;
        intent.receipt.asked = unix_seconds();
        intent.receipt.models = intent.keys.keys().cloned().collect();
        intent.receipt.exports = ledger.exports(&intent.receipt.models, stored).map_err(ErasureError::Ledger)?;
        ledger.begin(&intent.receipt.id, intent).map_err(ErasureError::Ledger)
    }

    fn choose_and_begin(&self, intent: &mut Intent, told: Told, parts: &[Part]) -> Result<(), Error> {
        let stored = Self::choose(intent, told, parts)?;
        self.begin(intent, &stored)?;
        // Those under keys that the one which told of it does not have.
        if let Some(tier) = parts.first().and_then(|part| part.shared.tier.as_ref()) {
            tier.tier().remove(&intent.all_keys().into_iter().collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Completes what was begun, if anything was; what has just been begun is `fresh`. One that cannot be does not keep the others from it.
    fn complete(self: &Arc<Self>, parts: &[Part], fresh: Option<&str>) -> Result<(), Error> {
        let mut all = Ok(());
        for mut intent in self.work.ledger.begun::<Intent>().map_err(ErasureError::Ledger)? {
            if intent.erased {
                self.tell_later(parts);
                continue;
            }
            let resumed = fresh != Some(&*intent.receipt.id);
            if resumed {
                tracing::info!(id = intent.receipt.id, "an erasure that was begun is completed");
            }
            let completed = match intent.told.take() {
                Some(told) => self.choose_and_begin(&mut intent, told, parts),
                None => Ok(()),
            };
            all = all.and(completed.and_then(|()| self.carry_out(parts, intent, resumed).map(drop)));
        }
        all
    }

    /// Does what is written down, from the beginning: what is done already is found to be done.
    fn carry_out(self: &Arc<Self>, parts: &[Part], mut intent: Intent, resumed: bool) -> Result<Receipt, Error> {
        let tier = parts.iter().find_map(|part| part.shared.tier.as_ref()).map(|shared| shared.tier());
        // Others first: what they compute from now on is not meant.
        intent.receipt.tier = tier.filter(|_| intent.tells).map(|tier| tell(tier, &intent));
        let all = Arc::new(intent.all_keys());
        let mut erased = Places::default();
        for part in parts.iter().filter(|part| intent.receipt.models.contains(&part.version.to_string())) {
            erased += erase_in(part, &intent.keys_of(&part.version), &all)?;
        }
        let stores: Vec<_> = parts.iter().map(|part| &part.shared.store).collect();
        let left_out = self.folder.rewrite_side(&stores).map_err(ErasureError::Store)?;
        erased.token_keys += left_out.token_keys;
        erased.attachments += left_out.attachments;
        intent.receipt.erased = erased;
        intent.receipt.not_erased = self.not_erased(parts, &intent)?;
        intent.receipt.synced = true;
        intent.receipt.resumed = resumed;
        let ledger = &self.work.ledger;
        let digest = ledger.keep_keys(&intent.receipt.id, all.iter()).map_err(ErasureError::Ledger)?;
        intent.receipt.keys = ErasedKeys { count: all.len(), digest };
        let is_told = intent.receipt.tier.is_none_or(|tier| tier.published && tier.removed);
        if !is_told {
            intent
                .receipt
                .pending
                .push("the shared tier is away: its records, and what other machines have".to_owned());
        }
        intent.receipt.completed = unix_seconds();
        let receipt = ledger.add(intent.receipt.clone()).map_err(ErasureError::Ledger)?;
        self.work.erasures.fetch_add(1, Relaxed);
        self.work.entries.fetch_add(erased.entries as u64, Relaxed);
        if is_told {
            ledger.done(&intent.receipt.id).map_err(ErasureError::Ledger)?;
        } else {
            intent.erased = true;
            ledger.begin(&intent.receipt.id, &intent).map_err(ErasureError::Ledger)?;
            self.tell_later(parts);
        }
        self.work.count_pending();
        Ok(receipt)
    }

    /// What this cannot reach, in words.
    fn not_erased(&self, parts: &[Part], intent: &Intent) -> Result<Vec<String>, ErasureError> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut left = Vec::new();
        let served: HashSet<String> = parts.iter().map(|part| part.version.to_string()).collect();
        for path in ReadOnly::spaces(self.folder.root())? {
            match ReadOnly::open(&path) {
                Ok(space) if served.contains(&space.model().to_string()) => {}
                _ => left.push(format!("{}: entries of a model that is not served", name(&path))),
            }
        }
        for path in self.folder.put_aside()? {
            left.push(format!("{}: damaged, put aside; whose entries it has cannot be told", name(&path)));
        }
        for part in parts {
            let damaged = part.shared.store.derived().join("reuse.redb.damaged");
            if damaged.exists() {
                left.push(format!("{}: damaged, put aside; whose texts it has cannot be told", name(&damaged)));
            }
        }
        let by_name = matches!(intent.receipt.selector.kind.as_str(), "tags" | "namespace");
        if by_name && intent.receipt.tier.is_some() {
            left.push(
                "records of the shared tier under keys that no machine has are served to nobody, and expire".to_owned(),
            );
        }
        Ok(left)
    }

    /// Has a thread tell the shared tier when it can be told, if none does.
    fn tell_later(&self, parts: &[Part]) {
        let Some(tier) = parts.iter().find_map(|part| part.shared.tier.as_ref()).map(|shared| shared.tier().clone())
        else {
            return;
        };
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        if teller.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let work = Arc::clone(&self.work);
        let run = move || {
            while !work.stopped_within(TELL_EVERY) {
                let _erasing = work.lock();
                match work.tell(&tier) {
                    Ok(false) => {}
                    Ok(true) => return,
                    Err(error) => tracing::warn!(%error, "what was erased could not be told to the shared tier"),
                }
            }
        };
        match std::thread::Builder::new().name("vecmemo-erasure".to_owned()).spawn(run) {
            Ok(thread) => *teller = Some(thread),
            Err(error) => tracing::error!(%error, "the shared tier is told of an erasure at the next start"),
        }
    }
}

impl Intent {
    /// Adds a model's keys, and notes when those that are there were stored.
    fn add(&mut self, part: &Part, mut keys: Vec<Key>, stored: &mut Vec<(String, u32)>) {
        keys.sort_unstable();
        keys.dedup();
        let fingerprint = part.version.to_string();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let entries = part.shared.store.contains_many(keys, 0);
            stored.extend(entries.iter().flatten().map(|entry| (fingerprint.clone(), entry.created)));
        }
        self.keys.insert(fingerprint, keys.iter().map(Key::to_string).collect());
    }
}

/// Erases in one model's store, and in all that is kept beside it but the side store.
fn erase_in(part: &Part, keys: &[Key], all: &Arc<HashSet<Key>>) -> Result<Places, Error> {
    let shared = &part.shared;
    let has = |key: &Key| [!shared.store.tags(key).is_empty(), shared.store.payload(key).is_some()];
    // What of them waits to be removed when they go is counted by nobody else.
    let attachments = keys.iter().flat_map(has).filter(|has| *has).count() as u64;
    let rows = shared.store.erase(keys)?;
    shared.claims.release(keys);
    let reuse = shared.reuse.erase(Arc::clone(all)).map_err(ErasureError::Reuse)?;
    let graph_segments = shared.searchable.forget_gone(&shared.store).map_err(ErasureError::Graph)?;
    // What was on its way while the entries were removed.
    shared.store.settle(0)?;
    Ok(Places {
        entries: rows.entries,
        rows: rows.rows,
        reuse_texts: reuse.texts,
        reuse_aliases: reuse.aliases,
        graph_segments,
        attachments,
        ..Places::default()
    })
}

/// Tells the shared tier.
fn tell(tier: &Tier, intent: &Intent) -> TierState {
    let keys: Vec<Key> = intent.all_keys().into_iter().collect();
    // All of them: none waits for another.
    let published = intent.notices().iter().filter(|notice| !tier.publish(notice)).count() == 0;
    TierState { published, removed: tier.erase(&keys), records: keys.len() }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, ()> {
        // What it guards is on disk, and made for a process that ends anywhere.
        self.erasing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped_within(&self, time: Duration) -> bool {
        let stopped = self.stop.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stop.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Tells the tier what is left to be told. Answers whether nothing is any more.
    fn tell(&self, tier: &Tier) -> io::Result<bool> {
        for intent in self.ledger.begun::<Intent>()?.into_iter().filter(|intent| intent.erased) {
            // Told while it is away, it would keep the same notice again each time.
            if !tier.figures().ready {
                return Ok(false);
            }
            let state = tell(tier, &intent);
            if !(state.published && state.removed) {
                return Ok(false);
            }
            let (id, completed) = (intent.receipt.id.clone(), unix_seconds());
            self.ledger.add(Receipt { tier: Some(state), pending: Vec::new(), completed, ..intent.receipt })?;
            self.ledger.done(&id)?;
        }
        self.count_pending();
        Ok(true)
    }

    /// Counts what was begun and is not done.
    fn count_pending(&self) {
        let begun = self.ledger.begun::<Intent>().map_or(1, |begun| begun.len());
        self.pending.store(begun as u64, Relaxed);
    }
}

impl Drop for Eraser {
    fn drop(&mut self) {
        *self.work.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.work.stop.1.notify_all();
        let thread = self.teller.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that tells the shared tier of erasures had panicked");
        }
    }
}

/// Reads the figures at each scrape.
pub(super) struct ErasureCollector(pub(super) Arc<Eraser>);

impl std::fmt::Debug for ErasureCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ErasureCollector")
    }
}

impl Collector for ErasureCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let work = &self.0.work;
        for (name, help, value) in [
            ("erasures", "Erasures that have a receipt", &work.erasures),
            ("erased_entries", "Entries erased by them", &work.entries),
        ] {
            let counter = ConstCounter::new(value.load(Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let help = "Whether an erasure is not complete: on this machine, or because the shared tier could not be told";
        let gauge = ConstGauge::new(work.pending.load(Relaxed) as i64);
        gauge.encode(encoder.encode_descriptor("erasures_pending", help, None, gauge.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_of_a_tenants_namespace_by_its_whole_name_also_after_a_crash() {
        let namespace = Namespace::qualified("acme/docs").unwrap();
        let intent = Intent {
            receipt: Receipt::begun("an id"),
            keys: BTreeMap::from([("model".to_owned(), vec![Key::from_bytes([7; 32]).to_string()])]),
            namespace: Some(namespace.clone()),
            model: None,
            tells: true,
            erased: false,
            told: None,
        };
        let kept: Intent = serde_json::from_str(&serde_json::to_string(&intent).unwrap()).unwrap();
        let notices = kept.notices();
        assert_eq!(notices.len(), 1);
        assert_eq!((&notices[0].namespace, notices[0].keys.len()), (&Some(namespace), 1));
    }
}
