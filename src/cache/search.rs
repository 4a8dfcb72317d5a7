//! Search: the cached entries whose vectors are nearest to a query's.
//!
//! ```text
//! store ─ every change, in order ─► index (8-bit rows, a graph) ─ candidates ─► store (f16 rows) ─► similarities ─► best k
//! ```
//!
//! The index is made at the first search, which waits for it, and follows the store from then on: who never searches pays
//! nothing. What is stored before a search begins is found by it; a graph may miss one of a hundred. Everything here blocks: for the
//! making about a second a million entries, for a search as long as the processor takes to read the index.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use half::f16;
use serde::Serialize;

use super::repeated::{Asked, Repeated};
use super::{Error, Shared};
use crate::domain::{Key, Namespace, Reach};
use crate::index::{
    Choice, Cursor, Device, DeviceChoice, Filter, GraphOptions, Hit, Index, Method, Path, Query, Row, Rows, graph_files,
};
use crate::store::shred::shred;
use crate::store::{Entry, Selector, Store, Watcher};

/// The fewest rows that a graph is made of when it is wanted wherever it can be.
const GRAPH_ROWS_MIN: usize = 1000;

/// How searches are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchConfig {
    /// Whether they are.
    pub enabled: bool,
    /// By comparing all entries, by a graph, or by whichever is quicker.
    pub choice: Choice,
    /// What computes.
    pub device: DeviceChoice,
    /// The most bytes of answers kept for searches that are repeated; none if 0.
    pub cache_bytes: usize,
}

impl Default for SearchConfig {
    /// Whichever is quicker, on whichever device is, and nothing kept.
    fn default() -> Self {
        Self { enabled: true, choice: Choice::Auto, device: DeviceChoice::Auto, cache_bytes: 0 }
    }
}

/// What is searched for, but for the queries themselves.
#[derive(Clone, Debug)]
pub struct Search {
    /// The most entries a query finds: 1 to [`HITS_MAX`](crate::index::HITS_MAX).
    pub k: usize,
    /// Only entries at least so similar.
    pub min_similarity: Option<f32>,
    /// Only entries of this namespace.
    pub namespace: Option<Namespace>,
    /// Only entries in reach.
    pub within: Reach,
    /// Only entries with one of these tags.
    pub tags: Option<Vec<String>>,
    /// Only entries stored more than this long ago.
    pub older_than: Option<Duration>,
    /// Only entries stored at most this long ago.
    pub newer_than: Option<Duration>,
    /// Only what comes after this, as [`Searched::next`] says it. For a single query.
    pub after: Option<Cursor>,
    /// Whether all entries are to be compared, whatever is quicker.
    pub exact: bool,
}

impl Default for Search {
    /// The ten nearest of all.
    fn default() -> Self {
        Self {
            k: 10,
            min_similarity: None,
            namespace: None,
            within: Reach::everything(),
            tags: None,
            older_than: None,
            newer_than: None,
            after: None,
            exact: false,
        }
    }
}

/// What a search has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Searched {
    /// For each query what is nearest, best first.
    pub results: Vec<Vec<Found>>,
    /// Where the next page begins; none if there is none, or there are several queries.
    pub next: Option<Cursor>,
    /// How it was found.
    pub path: Path,
}

impl Searched {
    /// What so many queries find where there is nothing to find.
    pub(super) fn nothing(queries: usize) -> Self {
        let path = Path { method: Method::Exact, device: Device::Cpu };
        Self { results: vec![Vec::new(); queries], next: None, path }
    }
}

/// An entry that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its key.
    pub key: Key,
    /// The cosine of its vector, as stored in f16, with the query: −1 to 1.
    pub similarity: f32,
    /// What it was stored with.
    pub tags: Vec<String>,
    /// JSON that it was stored with.
    pub payload: Option<String>,
}

/// A store's index, once there is one.
pub(super) struct Searchable {
    config: SearchConfig,
    index: OnceLock<Arc<Index>>,
    repeated: Repeated,
}

impl Searchable {
    pub(super) fn new(config: SearchConfig) -> Self {
        let repeated = Repeated::new(config.cache_bytes);
        Self { config, index: OnceLock::new(), repeated }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.config.enabled
    }

    fn empty(&self, store: &Store) -> Index {
        let SearchConfig { choice, device, .. } = self.config;
        let dims = store.info().dims;
        // It was tried at the start; it may have gone since.
        let with_device = Index::new(dims).with_device(device);
        let index = with_device.unwrap_or_else(|error| {
            tracing::error!(%error, "the processor searches");
            Index::new(dims)
        });
        let index = index.with_choice(choice);
        let rows_min = (choice == Choice::Graph).then_some(GRAPH_ROWS_MIN);
        match choice {
            Choice::Exact => index,
            Choice::Auto | Choice::Graph => index.with_graph(GraphOptions { folder: Some(store.derived()), rows_min }),
        }
    }

    /// The index; made now if this is the first search. Whoever searches meanwhile waits.
    fn index(&self, store: &Store, now: u32) -> &Index {
        self.index.get_or_init(|| {
            let started = Instant::now();
            let index = Arc::new(self.empty(store));
            store.watch(Arc::new(Follower(Arc::clone(&index))), now);
            index.start();
            let took_ms = started.elapsed().as_millis() as u64;
            tracing::info!(
                entries = index.len(),
                bytes = index.memory_bytes(),
                took_ms,
                "made the index of a first search"
            );
            index
        })
    }

    /// Has nothing of entries that are gone left in what searches keep, in memory or on disk. Answers how many parts of the graph that
    /// was, of those that are in memory, or files.
    pub(super) fn forget_gone(&self, store: &Store) -> std::io::Result<usize> {
        self.repeated.forget();
        let (count, files) = match self.index.get().and_then(|index| index.forget_gone()) {
            Some(forgotten) => forgotten,
            // What of it is gone is not known before it is read; where no graph is kept, it may be another start's.
            None => {
                let files = graph_files(&store.derived())?;
                (files.len(), files)
            }
        };
        files.iter().try_for_each(|file| shred(file))?;
        Ok(count)
    }

    /// The index's figures; zeros before the first search.
    pub(super) fn figures(&self) -> IndexFigures {
        let figures = |index: &Arc<Index>| {
            let graph = index.graph_figures();
            IndexFigures {
                entries: index.len() as u64,
                memory_bytes: index.memory_bytes() as u64,
                graph_segments: graph.segments as u64,
                graph_entries: graph.rows.saturating_sub(graph.dead) as u64,
                faults: index.faults(),
                repeated: self.repeated.hits(),
            }
        };
        self.index.get().map(figures).unwrap_or_default()
    }
}

/// What a search reads. There is none before the first search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IndexFigures {
    /// Entries in it.
    pub entries: u64,
    /// Bytes of memory it takes, the graph's included.
    pub memory_bytes: u64,
    /// Segments of the graph.
    pub graph_segments: u64,
    /// Entries that are found by the graph; the others are compared.
    pub graph_entries: u64,
    /// How often a device has failed, and the processor searched.
    pub faults: u64,
    /// Searches answered from what was kept of earlier ones.
    pub repeated: u64,
}

/// Keeps an index as the store is.
struct Follower(Arc<Index>);

impl Watcher for Follower {
    fn published(&self, place: u32, key: Key, entry: Entry, row: &[f16]) {
        let Entry { sequence, namespace, created, expires, .. } = entry;
        self.0.set(Row { place, key, sequence, namespace, created, expires, unit: row });
    }

    fn withdrawn(&self, place: u32) {
        self.0.clear(place);
    }
}

/// The store's rows. Looking at one is not a use of its entry.
struct StoreRows<'a> {
    store: &'a Store,
    now: u32,
}

impl Rows for StoreRows<'_> {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        self.store.peek_many(keys, self.now, |index, entry, row| found(index, entry.sequence, row)).is_ok()
    }
}

/// Searches for each of the unit vectors.
pub(super) fn search(shared: &Shared, vectors: &[Vec<f32>], wanted: &Search) -> Result<Searched, Error> {
    let store = &shared.store;
    let now = shared.now();
    let index = shared.searchable.index(store, now);
    let repeated = &shared.searchable.repeated;
    // Before the search: what changes while it runs makes its answer one of the past.
    let asked = repeated.is_on().then(|| Asked::new(vectors, wanted, index.generation())).flatten();
    let is_there = |key: &Key| store.contains_many(&[*key], now)[0].is_some();
    if let Some(searched) = asked.as_ref().and_then(|asked| repeated.get(asked, is_there)) {
        return Ok(searched);
    }
    let Some(chosen) = Chosen::of(store, wanted, now)? else {
        return Ok(Searched::nothing(vectors.len()));
    };
    let filter = Filter {
        namespaces: chosen.namespaces.as_deref(),
        created: chosen.created.clone(),
        now,
        places: chosen.places.as_deref(),
    };
    // What is written from here on is on no later page.
    let newest = wanted.after.map_or_else(|| store.last_sequence(), |after| after.sequence);
    let query = |vector| Query { vector, k: wanted.k, min_similarity: wanted.min_similarity, after: wanted.after };
    let queries: Vec<Query<'_>> = vectors.iter().map(|vector| query(vector.as_slice())).collect();
    let answer = index.answer(&queries, &filter, &StoreRows { store, now }, wanted.exact)?;
    let (hits, path) = (answer.hits, answer.path);
    let next = match hits.as_slice() {
        [hits] if hits.len() == wanted.k => {
            hits.last().map(|last| Cursor { similarity: last.similarity, key: last.key, sequence: newest })
        }
        _ => None,
    };
    let found = |hits: Vec<Hit>| -> Vec<Found> {
        // A place may have been given to another entry since its tags were asked for.
        let meant = hits.into_iter().filter(|hit| chosen.has(&hit.key));
        meant.map(|hit| Found::of(store, &hit)).collect()
    };
    let searched = Searched { results: hits.into_iter().map(found).collect(), next, path };
    if let Some(asked) = asked {
        repeated.keep(asked, &searched);
    }
    Ok(searched)
}

impl Found {
    fn of(store: &Store, hit: &Hit) -> Self {
        Self {
            key: hit.key,
            // Rounding to f16 can make a vector longer than one by a hair.
            similarity: hit.similarity.clamp(-1.0, 1.0),
            tags: store.tags(&hit.key),
            payload: store.payload(&hit.key),
        }
    }
}

/// Which entries a search is about, as the index puts it.
struct Chosen {
    namespaces: Option<Vec<u32>>,
    created: RangeInclusive<u32>,
    /// Of the entries with the tags that are wanted, if some are: keys, and places in order.
    tagged: Option<HashSet<Key>>,
    places: Option<Vec<u32>>,
}

impl Chosen {
    /// `None` if there are no such entries.
    fn of(store: &Store, wanted: &Search, now: u32) -> Result<Option<Self>, Error> {
        let Search { namespace, within, tags, older_than, newer_than, .. } = wanted;
        let namespaces = match namespace {
            None if within.tenant().is_none() => None,
            None => Some(store.namespaces(|name| within.has(name))),
            Some(name) if within.has(name.as_str()) => Some(store.namespace_number(name).into_iter().collect()),
            Some(_) => return Ok(None),
        };
        if namespaces.as_ref().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        let ago = |age: Duration| now.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        let oldest = newer_than.map_or(0, ago);
        // Entries of a clock that was put back are young.
        let youngest = older_than.map_or(Some(u32::MAX), |age| ago(age).checked_sub(1));
        let Some(youngest) = youngest.filter(|&youngest| oldest <= youngest) else { return Ok(None) };
        let (mut tagged, mut places) = (None, None);
        if let Some(tags) = tags {
            let mut keys = HashSet::new();
            for tag in tags {
                keys.extend(store.select(&Selector::Tag(tag), now)?);
            }
            let of_all: Vec<Key> = keys.iter().copied().collect();
            let mut found = store.places(&of_all);
            found.sort_unstable();
            (tagged, places) = (Some(keys), Some(found));
        }
        Ok(Some(Self { namespaces, created: oldest..=youngest, tagged, places }))
    }

    fn has(&self, key: &Key) -> bool {
        self.tagged.as_ref().is_none_or(|tagged| tagged.contains(key))
    }
}
