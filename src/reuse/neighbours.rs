//! The texts whose vectors may be reused, and which of them is nearest to another.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use half::f16;

use super::lexicon::Lexicon;
use super::map::{Map, mean};
use super::table::Table;
use crate::domain::Key;
use crate::index::{Filter, Index, Query, Row, Rows};

/// How many of the nearest are looked at, should the first be gone.
const NEAREST: usize = 2;

/// A text that is near another.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// Its key.
    pub key: Key,
    /// Its token ids.
    pub ids: Arc<[u32]>,
    /// The cosine of the two texts' cheap vectors.
    pub cosine: f32,
}

/// Texts by their cheap vectors. Texts come, go and are searched for from many threads.
pub struct Neighbours {
    index: Index,
    texts: RwLock<Texts>,
}

#[derive(Default)]
struct Texts {
    /// Cheap vectors, place after place.
    vectors: Vec<f16>,
    by_key: HashMap<Key, Text>,
    free: Vec<u32>,
    sequence: u64,
}

struct Text {
    place: u32,
    sequence: u64,
    ids: Arc<[u32]>,
}

/// What a search reads of the texts.
struct Vectors<'a> {
    texts: &'a RwLock<Texts>,
    dims: usize,
}

impl Rows for Vectors<'_> {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        let texts = read(self.texts);
        for (index, key) in keys.iter().enumerate() {
            if let Some(text) = texts.by_key.get(key) {
                found(index, text.sequence, &texts.vectors[text.place as usize * self.dims..][..self.dims]);
            }
        }
        true
    }
}

impl Neighbours {
    /// None yet; cheap vectors will have so many values.
    #[must_use]
    pub fn new(dims: usize) -> Self {
        // One thread a search: a request of many texts has several at a time already.
        Self { index: Index::new(dims).with_threads_max(NonZero::<usize>::MIN), texts: RwLock::default() }
    }

    /// How many texts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        read(&self.texts).by_key.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a text by its cheap vector. One that is there already stays as it is.
    pub fn add(&self, key: Key, ids: Arc<[u32]>, vector: &[f32]) {
        let dims = self.index.dims();
        let unit: Vec<f16> = vector.iter().map(|&value| f16::from_f32(value)).collect();
        let mut texts = write(&self.texts);
        if texts.by_key.contains_key(&key) {
            return;
        }
        let place = texts.free.pop().unwrap_or((texts.vectors.len() / dims) as u32);
        let start = place as usize * dims;
        if texts.vectors.len() < start + dims {
            texts.vectors.resize(start + dims, f16::ZERO);
        }
        texts.vectors[start..start + dims].copy_from_slice(&unit);
        texts.sequence += 1;
        let sequence = texts.sequence;
        texts.by_key.insert(key, Text { place, sequence, ids });
        self.index.set(Row { place, key, sequence, namespace: 0, created: 0, expires: None, unit: &unit });
    }

    /// Removes a text, if it is there.
    pub fn remove(&self, key: &Key) {
        let mut texts = write(&self.texts);
        if let Some(text) = texts.by_key.remove(key) {
            self.index.clear(text.place);
            let (dims, start) = (self.index.dims(), text.place as usize * self.index.dims());
            texts.vectors[start..start + dims].fill(f16::ZERO);
            texts.free.push(text.place);
        }
    }

    /// The text nearest to a cheap vector, if there is any.
    #[must_use]
    pub fn nearest(&self, vector: &[f32]) -> Option<Neighbour> {
        let rows = Vectors { texts: &self.texts, dims: self.index.dims() };
        let hits = self.index.search(&[Query::new(vector, NEAREST)], &Filter::all(0), &rows).ok()?.pop()?;
        let texts = read(&self.texts);
        hits.into_iter().find_map(|hit| {
            let ids = Arc::clone(&texts.by_key.get(&hit.key)?.ids);
            Some(Neighbour { key: hit.key, ids, cosine: hit.similarity })
        })
    }
}

/// A text's cheap vectors.
pub(super) struct Cheap {
    /// The mean of its tokens' vectors.
    pub(super) mean: Vec<f32>,
    /// That, mapped; `None` if it has no direction.
    pub(super) mapped: Option<Vec<f32>>,
}

impl Cheap {
    pub(super) fn of(table: &Table, lexicon: &Lexicon, map: &Map, ids: &[u32]) -> Self {
        let mean = mean(table, lexicon, ids);
        let mapped = map.apply(&mean);
        Self { mean, mapped }
    }
}

/// Each change is complete before anything that can panic.
fn read(texts: &RwLock<Texts>) -> RwLockReadGuard<'_, Texts> {
    texts.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(texts: &RwLock<Texts>) -> RwLockWriteGuard<'_, Texts> {
    texts.write().unwrap_or_else(PoisonError::into_inner)
}
