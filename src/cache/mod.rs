//! The cache itself: the path of a text from key to vector.
//!
//! ```text
//! key ─► store ─ hit ────────────────────────────────────────────► answer
//!          └ miss ─► flight ─ joined ─────────────────────────┐
//!                      └ leads ─► tokens ─ same ids stored ──┤
//!                                   └ queue ─► engine ─► write ─► land ─► answer
//! ```
//!
//! Promises: answers keep the order of the inputs; a text asked for by many at once is computed once; a cached answer
//! and a computed one are derived from the same record and so are the same bytes; a vector that is not finite or has no
//! direction is neither stored nor answered; a store that cannot write fails no request; dropping a request's future
//! cancels nothing that another waits for.
//!
//! ```no_run
//! # async fn run() -> anyhow::Result<()> {
//! use vecmemo::{batch, cache, domain::ContentHash, engine, store};
//!
//! let model = engine::fake::model(384);
//! let store = store::Store::open("data".as_ref(), &model.card.version, model.card.dims, &store::Config::default())?;
//! let cache = cache::Cache::new(store, batch::Embedder::start(model, batch::Config::default()));
//! let answer = cache.embed(cache::Request::new(cache::Inputs::Texts(&["a text".into()]))).await?;
//! let key = cache.default_scope().key(ContentHash::of("a text"));
//! assert_eq!(answer.items[0].key, key);
//! # Ok(())
//! # }
//! ```

mod catalogue;
mod census;
mod draft;
mod erasure;
mod error;
mod events;
mod flight;
mod holdings;
mod invalidate;
mod lead;
mod metrics;
mod migration;
mod part;
pub mod policy;
mod refresh;
mod remote;
mod repeated;
mod request;
mod resident;
mod reuse;
mod search;
mod stats;
mod windows;
mod writer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use half::f16;
use half::slice::HalfFloatSliceExt;
use prometheus_client::registry::Registry;

use crate::batch::{Embedder, TokenizeError};
use crate::domain::{
    ContentHash, Embedding, Key, Lane, ModelCard, Namespace, Scope, Tokens, Truncation, TruncationDirection,
    scaled_to_one,
};
use crate::remote::Asked;
use crate::store::{Ages, Census, Entry, NewEntry, Store, unix_seconds};

pub use crate::batch::Token;
pub use crate::index::{Choice as PathChoice, Cursor, Device, DeviceChoice as SearchDevice, HITS_MAX, Method, Path};
pub use crate::reuse::{Refusal, Terms as ReuseTerms};
pub use catalogue::{Catalogue, CatalogueError, ChangeError, Reacted, Served};
pub use erasure::{
    ErasedKeys, Eraser, Erasure, ErasureError, ExportLine, KnownExport, Ledger, Named, Places, Receipt, Selected,
    TierState, Veiled, is_id,
};
pub use error::Error;
pub use events::{Event, EventError, EventRule, EventRuleError, EventRules};
pub use holdings::Holdings;
pub use invalidate::{Invalidated, Invalidation, InvalidationMode};
pub use migration::{Embedded, Migration, Progress};
pub use part::Part;
pub use policy::Policies;
pub use remote::{Elsewhere, SharedTier};
pub use request::{Answer, Freshness, Inputs, Item, Mode, Payload, Request, Timings};
pub use reuse::{CertificateFigures, Config as ReuseConfig, FieldFigures, ReuseFigures, Reused};
pub use search::{Found, IndexFigures, Search, SearchConfig, Searched};
pub use stats::{Evictions, Memory, Stats, Tier, Weights, Window};

use census::LastCensus;
use draft::{Draft, set_row};
use flight::{Flights, Particulars, Place, Waiter};
use holdings::Counted;
use lead::{Errand, Input, Sharing};
use metrics::Metrics;
use refresh::{Claims, Due, Wishes};
use reuse::{Learner, Reuse};
use search::Searchable;
use writer::{Writer, WriterThread};

/// The cache. Cloning is cheap, and all clones are one cache.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    embedder: Embedder,
    /// `Some` until the last clone is dropped.
    writer: Option<Writer>,
    writer_thread: WriterThread,
    /// Once reuse was asked for.
    learner: OnceLock<Learner>,
    /// For a cache that is in no catalogue.
    eraser: OnceLock<Arc<Eraser>>,
    /// The default namespace's scopes with the default prompt, by truncation direction: hashed once.
    default_scopes: [Scope; 2],
    draining: AtomicBool,
}

/// What the cache's own threads need too.
struct Shared {
    // Ends before the store does, in whose folder it writes.
    searchable: Searchable,
    store: Store,
    flights: Flights,
    metrics: Metrics,
    /// Replaced as a whole.
    policies: RwLock<Arc<Policies>>,
    claims: Claims,
    reuse: Reuse,
    enabled: AtomicBool,
    tier: Option<SharedTier>,
    census: LastCensus,
    holdings: Counted,
}

/// How the cache is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long entries live, and how they are kept fresh.
    pub policies: Policies,
    /// Whether it is switched on at the start; see [`Cache::set_enabled`].
    pub enabled: bool,
    /// How what is near is found.
    pub search: SearchConfig,
    /// How the reuse of near-duplicates' vectors is learnt.
    pub reuse: ReuseConfig,
    /// The tier shared with other machines, if there is one. [`SharedTier::begin`] is to be called once all its caches are there.
    pub tier: Option<SharedTier>,
}

impl Default for Config {
    /// Entries live for ever, and the cache is on.
    fn default() -> Self {
        Self {
            policies: Policies::default(),
            enabled: true,
            search: SearchConfig::default(),
            reuse: ReuseConfig::default(),
            tier: None,
        }
    }
}

/// What texts are searched for by.
#[derive(Clone, Debug)]
pub struct QueryVectors {
    /// Vectors of length one, in the order of the texts.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of those that were not cached.
    pub tokens_computed: u64,
}

/// How often a read is begun in all when the store's file is cut short under it.
const READS_MAX: usize = 2;

/// How long a drain waits for what is on its way into the shared tier.
const TIER_FLUSH: Duration = Duration::from_secs(2);

impl Shared {
    fn policies(&self) -> Arc<Policies> {
        Arc::clone(&self.policies.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Shows `found` what the store has, and answers what that has made of `state`. A read that was torn is forgotten
    /// and done again; if the second is torn too, nothing is found.
    fn read<T>(
        &self,
        keys: &[Key],
        now: u32,
        mut state: T,
        forget: impl Fn(&mut T),
        mut found: impl FnMut(&mut T, usize, Entry, &[f16]),
    ) -> T {
        for _ in 0..READS_MAX {
            if self.store.get_many(keys, now, |index, entry, row| found(&mut state, index, entry, row)).is_ok() {
                return state;
            }
            forget(&mut state);
        }
        state
    }

    /// Seconds since 1970: what entries' times are counted in.
    fn now(&self) -> u32 {
        unix_seconds()
    }
}

impl Cache {
    /// Puts a store and a model together. The store must be the model's own: opened with its version and dims.
    #[must_use]
    pub fn new(store: Store, embedder: Embedder) -> Self {
        Self::with(store, embedder, Config::default())
    }

    /// As [`Cache::new`], kept as the configuration says.
    #[must_use]
    pub fn with(store: Store, embedder: Embedder, config: Config) -> Self {
        let Config { policies, enabled, search, reuse, tier } = config;
        let has_learnt = reuse::has_learnt(&store);
        let shared = Arc::new(Shared {
            store,
            flights: Flights::default(),
            metrics: Metrics::new(),
            policies: RwLock::new(Arc::new(policies)),
            claims: Claims::default(),
            searchable: Searchable::new(search),
            reuse: Reuse::new(reuse),
            enabled: AtomicBool::new(enabled),
            tier,
            census: LastCensus::default(),
            holdings: Counted::default(),
        });
        if let Some(tier) = &shared.tier {
            tier.add(embedder.card().version, &shared);
        }
        let (writer, writer_thread) = Writer::start(Arc::clone(&shared));
        let card = embedder.card();
        let prompt = default_prompt(card);
        let default_scopes = [TruncationDirection::Right, TruncationDirection::Left].map(|direction| {
            let truncation = Truncation { direction, max_tokens: card.max_tokens };
            Scope::new(&Default::default(), &card.version, prompt, truncation)
        });
        let draining = AtomicBool::new(false);
        let writer = Some(writer);
        let learner = OnceLock::new();
        if has_learnt {
            reuse::start(&shared, &embedder, &learner);
        }
        let eraser = OnceLock::new();
        let inner = Inner { shared, embedder, writer, writer_thread, learner, eraser, default_scopes, draining };
        Self { inner: Arc::new(inner) }
    }

    /// As it is, with what carries out the erasures of other machines, where there is no catalogue that has it.
    #[must_use]
    pub fn with_eraser(self, eraser: Arc<Eraser>) -> Self {
        // It is said once.
        let _ = self.inner.eraser.set(eraser);
        self
    }

    /// Embeds a request's inputs: from the cache what is there, by the model what is not.
    ///
    /// Needs a Tokio runtime for what is not cached; a request that is answered from the store alone never suspends.
    /// Dropping the future is a client leaving.
    ///
    /// # Errors
    /// See [`Error`]. One input that cannot be embedded fails the request; the others' vectors are cached all the same.
    pub async fn embed(&self, request: Request<'_>) -> Result<Answer, Error> {
        let started = Instant::now();
        let shared = &self.inner.shared;
        let enabled = shared.is_enabled();
        let mode = match request.mode {
            Mode::Use | Mode::Refresh if !enabled => Mode::Bypass,
            mode => mode,
        };
        let errand = self.errand(&request, mode)?;
        let keys = self.keys_under(&errand.scope, request.inputs)?;
        let hashed = Instant::now();

        let now = shared.now();
        let mut draft = Draft::new(keys, self.card().dims);
        if enabled && matches!(mode, Mode::Use | Mode::Only) {
            draft.fill(shared, now);
        }
        draft.timings.key = hashed - started;
        draft.timings.store = hashed.elapsed();

        if mode == Mode::Use && !draft.found.due.is_empty() {
            self.refresh(&request, &errand, &draft, now);
        }
        let mut missing = draft.missing();
        if !request.truncate {
            self.refuse_too_long(&request, &errand, &draft, &missing).await?;
        }
        if !missing.is_empty() {
            if mode == Mode::Only {
                return Err(Error::Missing { indexes: missing });
            }
            let ready = if mode == Mode::Use {
                self.reuse(&request, &errand, &mut draft, &mut missing).await
            } else {
                HashMap::new()
            };
            self.compute(&request, errand, &mut draft, missing, ready).await?;
        }
        let answer = draft.finish(now, mode == Mode::Bypass);
        shared.metrics.observe(&answer, started);
        Ok(answer)
    }

    /// The keys of a request's inputs, in order. Looks nothing up.
    ///
    /// # Errors
    /// When the request names an unknown prompt, or token ids the model does not have.
    pub fn keys(&self, request: &Request<'_>) -> Result<Vec<Key>, Error> {
        self.keys_under(&self.errand(request, request.mode)?.scope, request.inputs)
    }

    /// The scope of the default namespace with the model's default prompt, cutting long texts at the end.
    #[must_use]
    pub fn default_scope(&self) -> Scope {
        self.inner.default_scopes[0]
    }

    /// What is cached under each key; `None` where nothing is. Computes nothing and does not count as a use.
    #[must_use]
    pub fn lookup(&self, keys: &[Key]) -> Vec<Option<Entry>> {
        self.inner.shared.store.contains_many(keys, self.inner.shared.now())
    }

    /// The keys of all entries there are, expired ones included. Reads every record (64 MB for a million entries).
    #[must_use]
    pub fn all_keys(&self) -> Vec<Key> {
        self.inner.shared.store.keys()
    }

    /// What the tier shared with other machines has under each key of a namespace, brought from nowhere to nowhere: the vectors stay there.
    /// Blocks for the tier's deadline at most; must not be called from async code.
    #[must_use]
    pub fn lookup_elsewhere(&self, namespace: &Namespace, keys: &[Key]) -> Vec<Option<Elsewhere>> {
        let card = self.card();
        let asked = Asked { model: &card.version, namespace, dims: card.dims, keys };
        remote::elsewhere(&self.inner.shared, &asked)
    }

    /// The tags an entry was stored with.
    #[must_use]
    pub fn tags(&self, key: &Key) -> Vec<String> {
        self.inner.shared.store.tags(key)
    }

    /// The payload an entry was stored with: a JSON text.
    #[must_use]
    pub fn payload(&self, key: &Key) -> Option<String> {
        self.inner.shared.store.payload(key)
    }

    /// The name of an entry's namespace, by [`Entry::namespace`]; empty for the default one, `None` if it was lost.
    #[must_use]
    pub fn namespace_name(&self, number: u32) -> Option<String> {
        self.inner.shared.store.namespace_name(number)
    }

    /// The unit vectors under the keys, row after row, and the indexes of those that are not cached, whose rows are NaN.
    /// While the cache is switched off that is all of them.
    #[must_use]
    pub fn rows(&self, keys: &[Key]) -> (Vec<f16>, Vec<usize>) {
        let shared = &self.inner.shared;
        let mut draft = Draft::new(keys.to_vec(), self.card().dims);
        if shared.is_enabled() {
            draft.fill(shared, shared.now());
        }
        let missing = draft.missing();
        let absent = vec![f16::NAN; draft.dims];
        for &index in &missing {
            set_row(&mut draft.found.units, index * draft.dims, &absent);
        }
        (draft.found.units, missing)
    }

    /// One entry's embedding; none while the cache is switched off.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Embedding> {
        let shared = &self.inner.shared;
        if !shared.is_enabled() {
            return None;
        }
        shared.read(
            &[*key],
            shared.now(),
            None,
            |found| *found = None,
            |found, _, entry, row| {
                *found = Some(Embedding { unit: row.into(), norm: entry.norm });
            },
        )
    }

    /// Vectors of a request's inputs to search for: the cached ones from the cache, the others computed, none of them
    /// kept.
    ///
    /// # Errors
    /// As for [`Cache::embed`].
    pub async fn query_vectors(&self, request: Request<'_>) -> Result<QueryVectors, Error> {
        let (mut units, missing) = self.rows(&self.keys(&request)?);
        let dims = self.card().dims;
        let mut tokens_computed = 0;
        if !missing.is_empty() {
            let texts: Vec<Cow<'_, str>>;
            let sequences: Vec<Vec<u32>>;
            let inputs = match request.inputs {
                Inputs::Texts(all) => {
                    texts = missing.iter().map(|&index| Cow::Borrowed(&*all[index])).collect();
                    Inputs::Texts(&texts)
                }
                Inputs::Tokens(all) => {
                    sequences = missing.iter().map(|&index| all[index].clone()).collect();
                    Inputs::Tokens(&sequences)
                }
            };
            let computed = self.embed(Request { inputs, mode: Mode::Bypass, ..request }).await?;
            tokens_computed = computed.items.iter().map(|item| u64::from(item.tokens)).sum();
            for (&index, unit) in missing.iter().zip(computed.units.chunks_exact(dims)) {
                set_row(&mut units, index * dims, unit);
            }
        }
        Ok(QueryVectors { vectors: widened(&units, dims), tokens_computed })
    }

    /// The vectors of entries, to search for.
    ///
    /// # Errors
    /// When an entry is not there.
    pub fn stored_vectors(&self, keys: &[Key]) -> Result<Vec<Vec<f32>>, Error> {
        let (units, missing) = self.rows(keys);
        if !missing.is_empty() {
            return Err(Error::Missing { indexes: missing });
        }
        Ok(widened(&units, self.card().dims))
    }

    /// The entries nearest to each of some vectors, which may have any length but 0: exactly, or by a graph where that is
    /// allowed and quicker; see [`SearchConfig`]. None while the cache is switched off. The first search makes the index. Blocks
    /// for as long as either takes.
    ///
    /// # Errors
    /// When searches are switched off, a vector is not of the model's dims or has no direction, or the store's tags cannot be read.
    pub fn search(&self, vectors: &[Vec<f32>], wanted: &Search) -> Result<Searched, Error> {
        let shared = &self.inner.shared;
        if !shared.searchable.is_enabled() {
            return Err(Error::SearchOff);
        }
        let expected = self.card().dims;
        let unit = |vector: &Vec<f32>| {
            if vector.len() != expected {
                return Err(Error::Dims { expected, found: vector.len() });
            }
            Ok(scaled_to_one(vector).map_err(Error::Vector)?.0)
        };
        let units = vectors.iter().map(unit).collect::<Result<Vec<_>, _>>()?;
        if !shared.is_enabled() {
            return Ok(Searched::nothing(vectors.len()));
        }
        search::search(shared, &units, wanted)
    }

    /// Embeds a request's inputs, and lets what reuse is certified for be learnt from them, in their order, as if each had been
    /// missed now: to learn from texts that are cached already. Short ones are passed over.
    ///
    /// # Errors
    /// As for [`Cache::embed`].
    pub async fn learn(&self, request: Request<'_>) -> Result<Answer, Error> {
        let answer = self.embed(Request { reuse: None, ..request.clone() }).await?;
        let errand = self.errand(&request, Mode::Use)?;
        let keys = answer.items.iter().map(|item| item.key);
        let texts = keys.enumerate().map(|(index, key)| (key, owned(request.inputs, index))).collect();
        let (inner, namespace) = (Arc::clone(&self.inner), request.namespace.clone());
        reuse::start(&inner.shared, &inner.embedder, &inner.learner);
        let learn = move || reuse::learn(&inner.shared, &inner.embedder, &errand, &namespace, texts);
        let learnt = tokio::task::spawn_blocking(learn).await.expect("learning reports errors, it does not panic");
        learnt.map_err(|message| Error::Tokenizer { index: 0, message })?;
        Ok(answer)
    }

    /// Calibrates now what has been learnt of the reuse of near-duplicates in a namespace, under one of the model's prompts.
    /// Blocks for as long as that takes: seconds, and the first time as long as the model takes for all tokens of its vocabulary.
    ///
    /// # Errors
    /// When the model has no such prompt, or too little has been learnt.
    pub fn calibrate(&self, namespace: &Namespace, prompt_name: Option<&str>) -> Result<FieldFigures, Error> {
        let request = Request { namespace: namespace.clone(), prompt_name, ..Request::new(Inputs::Texts(&[])) };
        let errand = self.errand(&request, Mode::Use)?;
        let inner = &self.inner;
        reuse::start(&inner.shared, &inner.embedder, &inner.learner);
        reuse::calibrate(&inner.shared, &errand, namespace)
    }

    /// Removes entries. Answers how many of the keys there were. Blocks for as long as the store takes.
    ///
    /// # Errors
    /// When the store cannot write.
    pub fn remove(&self, keys: &[Key]) -> Result<usize, Error> {
        let wanted = Invalidation { keys: Some(keys.to_vec()), ..Invalidation::default() };
        remote::publish(&self.inner.shared, &self.card().version, &wanted, None);
        Ok(self.inner.shared.store.remove_many(keys)?)
    }

    /// Removes entries chosen by what they are, or marks them stale. Works while the cache is switched off, too. Blocks
    /// for as long as the store takes: a scan of all records for a namespace or an age, an index for the rest. With a shared tier the
    /// same is done on every machine that uses it.
    ///
    /// # Errors
    /// When nothing says which entries are meant, or the store cannot read or write; some may be removed then.
    pub fn invalidate(&self, wanted: &Invalidation) -> Result<Invalidated, Error> {
        let keys_of_texts = wanted.texts.as_ref().map(|texts| {
            let namespace = wanted.namespace.clone().unwrap_or_default();
            self.keys_of_texts(&namespace, texts)
        });
        let (shared, keys_of_texts) = (&self.inner.shared, keys_of_texts.as_deref());
        // Others first: what they compute from now on is not meant.
        let published = remote::publish(shared, &self.card().version, wanted, keys_of_texts);
        Ok(Invalidated { published, ..invalidate::invalidate(shared, wanted, keys_of_texts)? })
    }

    /// All keys that texts of a namespace may be cached under: with each of the model's prompts and with its default,
    /// cut at either end.
    fn keys_of_texts(&self, namespace: &Namespace, texts: &[String]) -> Vec<Key> {
        let card = self.card();
        let mut prompts: Vec<&str> = card.prompts.values().map(String::as_str).collect();
        prompts.push(default_prompt(card));
        prompts.sort_unstable();
        prompts.dedup();
        let directions = [TruncationDirection::Right, TruncationDirection::Left];
        let truncations = directions.map(|direction| Truncation { direction, max_tokens: card.max_tokens });
        let scope = |prompt, truncation| Scope::new(namespace, &card.version, prompt, truncation);
        let scopes: Vec<Scope> =
            prompts.iter().flat_map(|prompt| truncations.map(|truncation| scope(prompt, truncation))).collect();
        let keys = texts.iter().map(|text| ContentHash::of(text));
        keys.flat_map(|content| scopes.iter().map(move |scope| scope.key(content))).collect()
    }

    /// Switches the cache off or on. Off, everything is computed and nothing is read or stored; what is stored stays,
    /// can be removed, and is answered again once the cache is on. What was begun before ends as it was begun.
    pub fn set_enabled(&self, enabled: bool) {
        self.inner.shared.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Whether the cache is switched on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.inner.shared.is_enabled()
    }

    /// The tier that is shared with other machines, if there is one.
    #[must_use]
    pub fn tier(&self) -> Option<&crate::remote::Tier> {
        self.inner.shared.tier.as_ref().map(SharedTier::tier)
    }

    /// Has these policies say from now on how entries live. What is stored keeps the life it was given; what is computed right now
    /// lives as was said when it was asked for.
    pub fn set_policies(&self, policies: Policies) {
        *self.inner.shared.policies.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policies);
    }

    /// How many entries have which age. Reads every record (64 MB for a million entries): not for async threads.
    #[must_use]
    pub fn ages(&self) -> Ages {
        self.inner.shared.store.ages(self.inner.shared.now())
    }

    /// The namespaces and tags with most entries, as they were some seconds ago. Reads entries now and then: not for async threads.
    #[must_use]
    pub fn census(&self) -> Arc<Census> {
        let shared = &self.inner.shared;
        shared.census.get(|| shared.store.census(shared.now()))
    }

    /// Stores a vector computed elsewhere, which must be this model's, not normalised or normalised. What is there
    /// already stays. It lives as the default namespace's policy says.
    ///
    /// # Errors
    /// When its length is not the model's, it cannot be used, the cache is switched off, or the store cannot write.
    pub fn put(&self, key: Key, vector: &[f32]) -> Result<(), Error> {
        let expected = self.card().dims;
        if vector.len() != expected {
            return Err(Error::Dims { expected, found: vector.len() });
        }
        let embedding = Embedding::from_raw(vector).map_err(Error::Vector)?;
        let shared = &self.inner.shared;
        if !shared.is_enabled() {
            return Err(Error::SwitchedOff);
        }
        let namespace = Namespace::default();
        let policies = shared.policies();
        let terms = policies.terms(namespace.as_str(), &[]);
        let now = shared.now();
        // Not to be refreshed ahead: its text is not known to be what the model would be given.
        let entry = NewEntry {
            expires: terms.expires(&key, None, now),
            pinned: terms.pinned,
            durability: terms.durability,
            quota: policies.quota(namespace.as_str()),
            ..NewEntry::new(key, &embedding.unit, embedding.norm, &namespace)
        };
        Ok(shared.store.put_many(&[entry], now)?)
    }

    /// A text's tokens, as the model's tokenizer splits it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, Error> {
        let tokens = self.inner.embedder.inspect(text, prompt, add_special_tokens);
        tokens.map_err(|error| match error {
            TokenizeError::TokenizerUnknown { .. } => Error::TokenizerUnknown(error.to_string()),
            error => Error::Tokenizer { index: 0, message: error.to_string() },
        })
    }

    /// The served model's facts.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        self.inner.embedder.card()
    }

    /// When what waits for the model in a lane should have been worked off.
    #[must_use]
    pub fn retry_after(&self, lane: Lane) -> Duration {
        self.inner.embedder.queue().lanes[lane as usize].retry_after()
    }

    /// How many texts wait for the model.
    fn queued(&self) -> usize {
        self.inner.embedder.queue().texts
    }

    /// The figures so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let card = self.card();
        Stats::of(&self.inner.shared, &self.inner.embedder, card.name.clone(), card.version.to_string())
    }

    /// Whether a request would be served now.
    ///
    /// # Errors
    /// When it would not, saying why.
    pub fn readiness(&self) -> Result<(), String> {
        if self.inner.draining.load(Ordering::Relaxed) { Err("shutting down".to_owned()) } else { Ok(()) }
    }

    /// Why the store keeps less than it promises, if it does. Requests are answered all the same.
    #[must_use]
    pub fn store_trouble(&self) -> Option<String> {
        let info = self.inner.shared.store.info();
        let failures = self.inner.shared.metrics.write_failures_in_a_row();
        let troubles = [
            info.degraded.map(|reason| format!("degraded: {reason}")),
            (failures > 0).then(|| format!("degraded: the last {failures} writes failed; see the log")),
            (info.quarantined > 0)
                .then(|| format!("damaged: {} entries were found damaged and are not served", info.quarantined)),
            (!info.put_aside.is_empty()).then(|| format!("damaged: put aside at start: {}", info.put_aside.join("; "))),
            (info.torn_reads > 0).then(|| "damaged: the store's file was cut short while it was open".to_owned()),
        ];
        let troubles: Vec<String> = troubles.into_iter().flatten().collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// What is wrong with the model, if anything is. Requests are answered as far as they can be.
    #[must_use]
    pub fn model_trouble(&self) -> Option<String> {
        self.inner.embedder.trouble()
    }

    /// Adds the cache's metrics, and those of the parts it is made of, to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.shared.metrics.register(registry);
        self.inner.embedder.register(registry);
        let residency = self.inner.embedder.residency().cloned();
        registry.register_collector(Box::new(stats::StoreCollector(Arc::downgrade(&self.inner.shared), residency)));
    }

    /// Ends in order: nothing new is computed, what was accepted is finished and answered, the store is synced.
    /// What is cached is still answered.
    ///
    /// # Errors
    /// When the store cannot be synced.
    pub async fn drain(&self) -> Result<(), Error> {
        self.inner.draining.store(true, Ordering::Relaxed);
        let cache = self.clone();
        let drained = tokio::task::spawn_blocking(move || {
            cache.inner.embedder.drain();
            cache.inner.writer().flush();
            if let Some(tier) = &cache.inner.shared.tier
                && !tier.tier().flush(TIER_FLUSH)
            {
                tracing::warn!("some of what was computed last did not get into the shared tier");
            }
            cache.inner.shared.store.sync()
        });
        Ok(drained.await.expect("draining does not panic")?)
    }

    /// What all inputs of a request have in common.
    fn errand(&self, request: &Request<'_>, mode: Mode) -> Result<Errand, Error> {
        let card = self.card();
        let prompt = match request.prompt_name {
            None => default_prompt(card),
            Some(name) => card.prompts.get(name).ok_or_else(|| Error::UnknownPrompt {
                name: name.to_owned(),
                known: card.prompts.keys().cloned().collect(),
            })?,
        };
        let direction = request.direction.unwrap_or(card.truncation_direction);
        let truncation = Truncation { direction, max_tokens: card.max_tokens };
        let scope = if request.prompt_name.is_none() && request.namespace.as_str().is_empty() {
            self.inner.default_scopes[usize::from(direction == TruncationDirection::Left)]
        } else {
            Scope::new(&request.namespace, &card.version, prompt, truncation)
        };
        let sharing = match mode {
            Mode::Use | Mode::Only => Sharing::Shared,
            Mode::Bypass => Sharing::Alone { replace: false },
            Mode::Refresh => Sharing::Alone { replace: true },
        };
        Ok(Errand { scope, prompt: prompt.to_owned(), truncation, sharing })
    }

    fn keys_under(&self, scope: &Scope, inputs: Inputs<'_>) -> Result<Vec<Key>, Error> {
        match inputs {
            Inputs::Texts(texts) => Ok(texts.iter().map(|text| scope.key(ContentHash::of(text))).collect()),
            Inputs::Tokens(sequences) => {
                let vocabulary = self.inner.embedder.vocabulary_size();
                for (index, ids) in sequences.iter().enumerate() {
                    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
                        return Err(Error::TokenId { index, id, vocabulary });
                    }
                }
                let content = |ids: &Vec<u32>| ContentHash::from_bytes(*scope.token_key(ids).as_bytes());
                Ok(sequences.iter().map(|ids| scope.key(content(ids))).collect())
            }
        }
    }

    /// Has the hits that are due computed anew in the background, if there is room for that. Waits for nothing.
    #[cold]
    fn refresh(&self, request: &Request<'_>, errand: &Errand, draft: &Draft, now: u32) {
        let queue = self.inner.embedder.queue();
        let due = &draft.found.due;
        if self.inner.draining.load(Ordering::Relaxed) || 2 * (queue.texts + due.len()) > queue.texts_max {
            return;
        }
        // Outside a runtime nothing can run in the background.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let claimed = refresh::claim(&self.inner.shared, &draft.keys, due, now);
        if claimed.is_empty() {
            return;
        }
        let input = |index| Due { key: draft.keys[index], input: owned(request.inputs, index) };
        let due: Vec<Due> = claimed.into_iter().map(input).collect();
        let wishes = Wishes { namespace: request.namespace.clone(), ttl: request.ttl };
        let (inner, errand, handle) = (Arc::clone(&self.inner), errand.clone(), runtime.clone());
        runtime.spawn_blocking(move || refresh::begin(&inner, &handle, due, &wishes, &errand));
    }

    /// With truncation forbidden: an error if a text that is missing, or was cut when it was cached, is too long.
    async fn refuse_too_long(
        &self,
        request: &Request<'_>,
        errand: &Errand,
        draft: &Draft,
        missing: &[usize],
    ) -> Result<(), Error> {
        let cut = draft.found.items.iter().enumerate().filter(|(_, item)| item.is_some_and(|item| item.truncated));
        let mut suspects: Vec<usize> = missing.iter().copied().chain(cut.map(|(index, _)| index)).collect();
        suspects.sort_unstable();
        if suspects.is_empty() {
            return Ok(());
        }
        let max_tokens = errand.truncation.max_tokens;
        let counts = match request.inputs {
            Inputs::Tokens(sequences) => suspects.iter().map(|&index| sequences[index].len()).collect(),
            Inputs::Texts(texts) => {
                let texts: Vec<String> = suspects.iter().map(|&index| texts[index].to_string()).collect();
                let (embedder, errand) = (self.inner.embedder.clone(), errand.clone());
                let counted = tokio::task::spawn_blocking(move || {
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let tokens = embedder.tokenize(&texts, &errand.prompt, errand.truncation)?;
                    Ok(tokens.iter().map(|tokens| tokens.count_before_truncation).collect::<Vec<usize>>())
                });
                let counted: Result<_, crate::batch::TokenizeError> =
                    counted.await.expect("a tokenizer reports errors, it does not panic");
                counted.map_err(|error| Error::Tokenizer { index: suspects[0], message: error.to_string() })?
            }
        };
        match suspects.into_iter().zip(counts).find(|&(_, tokens)| tokens > max_tokens) {
            Some((index, tokens)) => Err(Error::TooLong { index, tokens, max_tokens }),
            None => Ok(()),
        }
    }

    /// Answers what it can of the missing inputs with near-duplicates' vectors, if that is allowed. What is left to be
    /// computed stays in `missing`; the ids of what was read for this are returned, so that nothing is tokenised twice.
    async fn reuse(
        &self,
        request: &Request<'_>,
        errand: &Errand,
        draft: &mut Draft,
        missing: &mut Vec<usize>,
    ) -> HashMap<usize, Tokens> {
        let shared = &self.inner.shared;
        let policies = shared.policies();
        let terms = policies.terms(request.namespace.as_str(), request.tags);
        let Some(allowed) = request.reuse.or(terms.reuse).filter(|_| !self.inner.draining.load(Ordering::Relaxed))
        else {
            return HashMap::new();
        };
        reuse::start(shared, &self.inner.embedder, &self.inner.learner);
        let inputs: Vec<(usize, Key, lead::Input)> =
            missing.iter().map(|&index| (index, draft.keys[index], owned(request.inputs, index))).collect();
        let (inner, own_errand, namespace) = (Arc::clone(&self.inner), errand.clone(), request.namespace.clone());
        let attempt = move || reuse::attempt(&inner.shared, &inner.embedder, &own_errand, &namespace, allowed, inputs);
        // What cannot be tokenised is an error that the way of a miss tells of.
        let Ok(Some(attempt)) = tokio::task::spawn_blocking(attempt).await else { return HashMap::new() };
        draft.timings.tokenize = attempt.tokenize;
        draft.timings.reuse = attempt.search;
        let (mut ready, mut audits) = (HashMap::new(), Vec::new());
        let now = shared.now();
        for reuse::Tried { index, tokens, outcome } in attempt.tried {
            match outcome {
                Ok(found) => {
                    draft.reuse(&tokens, &found.embedding, found.reused);
                    if found.drawn {
                        let key = draft.keys[index];
                        let particulars = particulars(request, terms, &key, index, now);
                        audits.push(reuse::Audited { key, tokens, found, particulars });
                    }
                }
                Err(refusal) => {
                    if let Some(refusal) = refusal {
                        *draft.refusals.entry(refusal).or_default() += 1;
                    }
                    ready.insert(index, tokens);
                }
            }
        }
        missing.retain(|index| ready.contains_key(index));
        if !audits.is_empty() {
            let (inner, errand, namespace) = (Arc::clone(&self.inner), errand.clone(), request.namespace.clone());
            let runtime = tokio::runtime::Handle::current();
            runtime.clone().spawn_blocking(move || reuse::audit(&inner, &runtime, audits, &errand, &namespace));
        }
        ready
    }

    /// Fills the missing rows: joins the calls that are on their way, leads the others, waits for all.
    async fn compute(
        &self,
        request: &Request<'_>,
        errand: Errand,
        draft: &mut Draft,
        missing: Vec<usize>,
        mut ready: HashMap<usize, Tokens>,
    ) -> Result<(), Error> {
        if missing.is_empty() {
            return Ok(());
        }
        if self.inner.draining.load(Ordering::Relaxed) {
            return Err(Error::ShuttingDown);
        }
        let shared = &self.inner.shared;
        let now = shared.now();
        let policies = shared.policies();
        let terms = policies.terms(request.namespace.as_str(), request.tags);
        let quota = policies.quota(request.namespace.as_str());
        let particulars =
            |key: &Key, index: usize| Particulars { quota, ..particulars(request, terms, key, index, now) };
        let mut alone: HashMap<Key, Waiter> = HashMap::new();
        let mut leaders = Vec::new();
        let mut raised = Vec::new();
        let mut waiters = Vec::with_capacity(missing.len());
        for index in missing {
            let key = draft.keys[index];
            let place = match errand.sharing {
                Sharing::Shared | Sharing::Refresh => {
                    shared.flights.join(key, request.lane, || particulars(&key, index))
                }
                Sharing::Alone { .. } => match alone.entry(key) {
                    Slot::Occupied(first) => Place::Follower(first.get().another(), None),
                    Slot::Vacant(place) => {
                        let waiter = Waiter::alone(key, request.lane, particulars(&key, index));
                        Place::Leader(place.insert(waiter).another())
                    }
                },
            };
            let (waiter, leads) = match place {
                Place::Leader(waiter) => {
                    let input = ready.remove(&index).map_or_else(|| owned(request.inputs, index), lead::Input::Read);
                    leaders.push(lead::leader(&waiter, input));
                    (waiter, true)
                }
                Place::Follower(waiter, ticket) => {
                    raised.extend(ticket);
                    (waiter, false)
                }
            };
            waiters.push((index, waiter, leads));
        }
        drop(alone);
        self.inner.embedder.promote(&raised);
        if !leaders.is_empty() {
            let inner = Arc::clone(&self.inner);
            tokio::task::spawn_blocking(move || {
                lead::lead(&inner, leaders, &errand);
            });
        }
        for (index, waiter, leads) in waiters {
            let landed = waiter.outcome().await.map_err(|failure| Error::from_failure(failure, index))?;
            draft.land(index, &landed, leads);
        }
        Ok(())
    }
}

/// What an input's entry is stored with.
fn particulars(request: &Request<'_>, terms: &policy::Terms, key: &Key, index: usize, now: u32) -> Particulars {
    Particulars {
        namespace: request.namespace.clone(),
        expires: terms.expires(key, request.ttl, now),
        tags: request.tags.to_vec(),
        payload: request.payload.of(index).map(str::to_owned),
        pinned: request.pinned.unwrap_or(terms.pinned),
        refresh_ahead: terms.refresh_ahead > 0.0,
        refreshes: false,
        is_shared: terms.shared,
        durability: terms.durability,
        quota: None,
    }
}

/// One input, to be kept when the request is gone.
fn owned(inputs: Inputs<'_>, index: usize) -> Input {
    match inputs {
        Inputs::Texts(texts) => Input::Text(texts[index].to_string()),
        Inputs::Tokens(sequences) => Input::Tokens(sequences[index].clone()),
    }
}

/// Rows of so many values each, in f32.
fn widened(rows: &[f16], dims: usize) -> Vec<Vec<f32>> {
    rows.chunks_exact(dims).map(|row| row.to_f32_vec()).collect()
}

fn default_prompt(card: &ModelCard) -> &str {
    card.default_prompt.as_ref().and_then(|name| card.prompts.get(name)).map_or("", String::as_str)
}

impl Inner {
    fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("the writer is there until the last clone is dropped")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.learner.take());
        self.embedder.drain();
        self.writer = None;
        self.writer_thread.join();
    }
}
