//! A cache as somebody sees it: an entry out of reach is not there.
//!
//! Requests that bring texts are kept apart by their namespace, which is in every key. Here is what requests that bring keys need:
//! whoever can name another tenant's key is answered as if nothing were under it.

use std::collections::HashMap;

use half::f16;

use super::draft::set_row;
use super::invalidate::{Invalidated, Invalidation};
use super::{Cache, Error, widened};
use crate::domain::{Key, Namespace, Reach};
use crate::store::Entry;

/// What of a cache is in reach.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    cache: &'a Cache,
    reach: &'a Reach,
}

impl Cache {
    /// What of it is in reach.
    #[must_use]
    pub fn within<'a>(&'a self, reach: &'a Reach) -> Part<'a> {
        Part { cache: self, reach }
    }
}

impl Part<'_> {
    /// As [`Cache::lookup`].
    #[must_use]
    pub fn lookup(&self, keys: &[Key]) -> Vec<Option<Entry>> {
        let mut entries = self.cache.lookup(keys);
        if self.reach.tenant().is_some() {
            let mut known: HashMap<u32, bool> = HashMap::new();
            let mut is_in = |number| *known.entry(number).or_insert_with(|| self.has(number));
            for entry in &mut entries {
                *entry = entry.filter(|entry| is_in(entry.namespace));
            }
        }
        entries
    }

    /// As [`Cache::rows`].
    #[must_use]
    pub fn rows(&self, keys: &[Key]) -> (Vec<f16>, Vec<usize>) {
        if self.reach.tenant().is_none() {
            return self.cache.rows(keys);
        }
        let places: Vec<usize> =
            (0..).zip(self.lookup(keys)).filter_map(|(place, entry)| entry.map(|_| place)).collect();
        let seen: Vec<Key> = places.iter().map(|&place| keys[place]).collect();
        let (rows, gone) = self.cache.rows(&seen);
        let dims = self.cache.card().dims;
        let mut units = vec![f16::NAN; keys.len() * dims];
        let mut missing: Vec<bool> = vec![true; keys.len()];
        for (at, (&place, row)) in places.iter().zip(rows.chunks_exact(dims)).enumerate() {
            missing[place] = gone.binary_search(&at).is_ok();
            set_row(&mut units, place * dims, row);
        }
        let missing = missing.into_iter().enumerate().filter_map(|(place, missing)| missing.then_some(place)).collect();
        (units, missing)
    }

    /// As [`Cache::stored_vectors`].
    ///
    /// # Errors
    /// When an entry is not there.
    pub fn stored_vectors(&self, keys: &[Key]) -> Result<Vec<Vec<f32>>, Error> {
        let (units, missing) = self.rows(keys);
        if !missing.is_empty() {
            return Err(Error::Missing { indexes: missing });
        }
        Ok(widened(&units, self.cache.card().dims))
    }

    /// As [`Cache::remove`], of one key.
    ///
    /// # Errors
    /// When the store cannot write.
    pub fn remove(&self, key: &Key) -> Result<usize, Error> {
        if self.reach.tenant().is_none() {
            return self.cache.remove(&[*key]);
        }
        let Some(entry) = self.lookup(&[*key]).pop().flatten() else { return Ok(0) };
        // Other machines are told whose it is as well: the key alone might be anybody's.
        let namespace = self.cache.namespace_name(entry.namespace).and_then(|name| Namespace::qualified(&name).ok());
        let wanted = Invalidation { keys: Some(vec![*key]), namespace, ..Invalidation::default() };
        let Invalidated { removed, .. } = self.cache.invalidate(&wanted)?;
        Ok(removed)
    }

    fn has(&self, namespace: u32) -> bool {
        self.cache.namespace_name(namespace).is_some_and(|name| self.reach.has(&name))
    }
}
