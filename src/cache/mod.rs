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

mod draft;
mod error;
mod flight;
mod lead;
mod metrics;
mod request;
mod stats;
mod writer;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use half::f16;
use prometheus_client::registry::Registry;

use crate::batch::Embedder;
use crate::domain::{ContentHash, Embedding, Key, ModelCard, Scope, Truncation, TruncationDirection};
use crate::store::{Entry, NewEntry, Store};

pub use crate::batch::Token;
pub use error::Error;
pub use request::{Answer, Inputs, Item, Mode, Request, Timings};
pub use stats::Stats;

use draft::{Draft, set_row};
use flight::{Flights, Particulars, Place, Waiter};
use lead::{Errand, Input, Sharing};
use metrics::Metrics;
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
    /// The default namespace's scopes with the default prompt, by truncation direction: hashed once.
    default_scopes: [Scope; 2],
    draining: AtomicBool,
}

/// What the cache's own threads need too.
struct Shared {
    store: Store,
    flights: Flights,
    metrics: Metrics,
}

impl Shared {
    /// Seconds since 1970: what entries' times are counted in.
    fn now(&self) -> u32 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
    }
}

impl Cache {
    /// Puts a store and a model together. The store must be the model's own: opened with its version and dims.
    #[must_use]
    pub fn new(store: Store, embedder: Embedder) -> Self {
        let shared = Arc::new(Shared { store, flights: Flights::default(), metrics: Metrics::new() });
        let (writer, writer_thread) = Writer::start(Arc::clone(&shared));
        let card = embedder.card();
        let prompt = default_prompt(card);
        let default_scopes = [TruncationDirection::Right, TruncationDirection::Left].map(|direction| {
            let truncation = Truncation { direction, max_tokens: card.max_tokens };
            Scope::new(&Default::default(), &card.version, prompt, truncation)
        });
        let draining = AtomicBool::new(false);
        let writer = Some(writer);
        Self { inner: Arc::new(Inner { shared, embedder, writer, writer_thread, default_scopes, draining }) }
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
        let errand = self.errand(&request)?;
        let keys = self.keys_under(&errand.scope, request.inputs)?;
        let hashed = Instant::now();

        let mut draft = Draft::new(keys, self.card().dims);
        if matches!(request.mode, Mode::Use | Mode::Only) {
            draft.fill(&self.inner.shared);
        }
        draft.timings.key = hashed - started;
        draft.timings.store = hashed.elapsed();

        let missing = draft.missing();
        if !request.truncate {
            self.refuse_too_long(&request, &errand, &draft, &missing).await?;
        }
        if !missing.is_empty() {
            if request.mode == Mode::Only {
                return Err(Error::Missing { indexes: missing });
            }
            self.compute(&request, errand, &mut draft, missing).await?;
        }
        let answer = draft.finish();
        self.inner.shared.metrics.observe(&answer.items);
        Ok(answer)
    }

    /// The keys of a request's inputs, in order. Looks nothing up.
    ///
    /// # Errors
    /// When the request names an unknown prompt, or token ids the model does not have.
    pub fn keys(&self, request: &Request<'_>) -> Result<Vec<Key>, Error> {
        self.keys_under(&self.errand(request)?.scope, request.inputs)
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

    /// The tags an entry was stored with.
    #[must_use]
    pub fn tags(&self, key: &Key) -> Vec<String> {
        self.inner.shared.store.tags(key)
    }

    /// The unit vectors under the keys, row after row, and the indexes of those that are not cached, whose rows are NaN.
    #[must_use]
    pub fn rows(&self, keys: &[Key]) -> (Vec<f16>, Vec<usize>) {
        let mut draft = Draft::new(keys.to_vec(), self.card().dims);
        draft.fill(&self.inner.shared);
        let missing = draft.missing();
        let absent = vec![f16::NAN; draft.dims];
        for &index in &missing {
            set_row(&mut draft.units, index * draft.dims, &absent);
        }
        (draft.units, missing)
    }

    /// One entry's embedding.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Embedding> {
        let mut found = None;
        self.inner.shared.store.get_many(&[*key], self.inner.shared.now(), |_, entry, row| {
            found = Some(Embedding { unit: row.into(), norm: entry.norm });
        });
        found
    }

    /// Stores a vector computed elsewhere, which must be this model's, not normalised or normalised. What is there
    /// already stays.
    ///
    /// # Errors
    /// When its length is not the model's, it cannot be used, or the store cannot write.
    pub fn put(&self, key: Key, vector: &[f32]) -> Result<(), Error> {
        let expected = self.card().dims;
        if vector.len() != expected {
            return Err(Error::Dims { expected, found: vector.len() });
        }
        let embedding = Embedding::from_raw(vector).map_err(Error::Vector)?;
        let entry = NewEntry {
            key,
            unit: &embedding.unit,
            norm: embedding.norm,
            tokens: 0,
            truncated: false,
            namespace: &Default::default(),
            expires: None,
            token_key: None,
            tags: &[],
            replace: false,
            copied: false,
        };
        Ok(self.inner.shared.store.put_many(&[entry], self.inner.shared.now())?)
    }

    /// A text's tokens, as the model's tokenizer splits it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, Error> {
        let tokens = self.inner.embedder.inspect(text, prompt, add_special_tokens);
        tokens.map_err(|error| Error::Tokenizer { index: 0, message: error.to_string() })
    }

    /// The served model's facts.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        self.inner.embedder.card()
    }

    /// The figures so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let card = self.card();
        Stats::of(&self.inner.shared, self.inner.embedder.queue(), card.name.clone(), card.version.to_string())
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
        let degraded = self.inner.shared.store.info().degraded;
        let failures = self.inner.shared.metrics.write_failures_in_a_row();
        degraded.or_else(|| (failures > 0).then(|| format!("the last {failures} writes failed; see the log")))
    }

    /// Adds the cache's metrics, and those of the parts it is made of, to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.shared.metrics.register(registry);
        self.inner.embedder.register(registry);
        registry.register_collector(Box::new(stats::StoreCollector(Arc::clone(&self.inner.shared))));
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
            cache.inner.shared.store.sync()
        });
        Ok(drained.await.expect("draining does not panic")?)
    }

    /// What all inputs of a request have in common.
    fn errand(&self, request: &Request<'_>) -> Result<Errand, Error> {
        let card = self.card();
        let prompt = match request.prompt_name {
            None => default_prompt(card),
            Some(name) => card.prompts.get(name).ok_or_else(|| Error::UnknownPrompt {
                name: name.to_owned(),
                known: card.prompts.keys().cloned().collect(),
            })?,
        };
        let truncation = Truncation { direction: request.direction, max_tokens: card.max_tokens };
        let scope = if request.prompt_name.is_none() && request.namespace.as_str().is_empty() {
            self.inner.default_scopes[usize::from(request.direction == TruncationDirection::Left)]
        } else {
            Scope::new(&request.namespace, &card.version, prompt, truncation)
        };
        let sharing = match request.mode {
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

    /// With truncation forbidden: an error if a text that is missing, or was cut when it was cached, is too long.
    async fn refuse_too_long(
        &self,
        request: &Request<'_>,
        errand: &Errand,
        draft: &Draft,
        missing: &[usize],
    ) -> Result<(), Error> {
        let cut = draft.items.iter().enumerate().filter(|(_, item)| item.is_some_and(|item| item.truncated));
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

    /// Fills the missing rows: joins the calls that are on their way, leads the others, waits for all.
    async fn compute(
        &self,
        request: &Request<'_>,
        errand: Errand,
        draft: &mut Draft,
        missing: Vec<usize>,
    ) -> Result<(), Error> {
        if self.inner.draining.load(Ordering::Relaxed) {
            return Err(Error::ShuttingDown);
        }
        let shared = &self.inner.shared;
        let expires = request.ttl.map(|ttl| shared.now().saturating_add(ttl.as_secs().min(u64::from(u32::MAX)) as u32));
        let particulars = || Particulars { namespace: request.namespace.clone(), expires, tags: request.tags.to_vec() };
        let mut alone: HashMap<Key, Waiter> = HashMap::new();
        let mut leaders = Vec::new();
        let mut waiters = Vec::with_capacity(missing.len());
        for index in missing {
            let key = draft.keys[index];
            let place = match errand.sharing {
                Sharing::Shared => shared.flights.join(key, particulars),
                Sharing::Alone { .. } => match alone.entry(key) {
                    Slot::Occupied(first) => Place::Follower(first.get().another()),
                    Slot::Vacant(place) => Place::Leader(place.insert(Waiter::alone(key, particulars())).another()),
                },
            };
            let (waiter, leads) = match place {
                Place::Leader(waiter) => {
                    let input = match request.inputs {
                        Inputs::Texts(texts) => Input::Text(texts[index].to_string()),
                        Inputs::Tokens(sequences) => Input::Tokens(sequences[index].clone()),
                    };
                    leaders.push(lead::leader(&waiter, input));
                    (waiter, true)
                }
                Place::Follower(waiter) => (waiter, false),
            };
            waiters.push((index, waiter, leads));
        }
        drop(alone);
        if !leaders.is_empty() {
            let inner = Arc::clone(&self.inner);
            tokio::task::spawn_blocking(move || {
                lead::lead(&inner.shared, &inner.embedder, inner.writer(), leaders, &errand);
            });
        }
        for (index, waiter, leads) in waiters {
            let landed = waiter.outcome().await.map_err(|failure| Error::from_failure(failure, index))?;
            draft.land(index, &landed, leads);
        }
        Ok(())
    }
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
        self.embedder.drain();
        self.writer = None;
        self.writer_thread.join();
    }
}
