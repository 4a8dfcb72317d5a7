//! How much each tenant has: entries are counted by namespace from the first time that somebody asks. Four bytes of memory a place
//! then; who never asks pays nothing.

use std::collections::HashMap;
use std::iter::Sum;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use half::f16;
use serde::Serialize;

use super::{Cache, Shared};
use crate::domain::{Key, Namespace, owner};
use crate::store::{Entry, Watcher};

/// No namespace has this number.
const VACANT: u32 = u32::MAX;

/// What a tenant has in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Holdings {
    /// Entries.
    pub entries: u64,
    /// Bytes of their records and rows.
    pub bytes: u64,
}

/// Entries by namespace, once they are counted.
#[derive(Default)]
pub(super) struct Counted(OnceLock<Arc<Counter>>);

#[derive(Default)]
struct Counter(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// The namespace of what is in each place.
    places: Vec<u32>,
    entries: HashMap<u32, u64>,
}

impl Cache {
    /// What a tenant has; with an empty name what is no tenant's. The first time all entries are counted, which blocks for
    /// as long as reading all records takes (64 MB for a million).
    #[must_use]
    pub fn holdings(&self, tenant: &str) -> Holdings {
        let shared = &self.inner.shared;
        let entries = shared.holdings.entries(shared, tenant);
        Holdings { entries, bytes: entries * shared.store.entry_bytes() }
    }

    /// How many namespaces of a tenant have ever had entries.
    #[must_use]
    pub fn namespaces_of(&self, tenant: &str) -> u64 {
        self.inner.shared.store.namespaces(|name| owner(name) == tenant).len() as u64
    }

    /// Whether a namespace has ever had entries.
    #[must_use]
    pub fn has_namespace(&self, namespace: &Namespace) -> bool {
        self.inner.shared.store.namespace_number(namespace).is_some()
    }

    /// Bytes of one entry's record and row.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        self.inner.shared.store.entry_bytes()
    }
}

impl Counted {
    fn entries(&self, shared: &Shared, tenant: &str) -> u64 {
        let counter = self.0.get_or_init(|| {
            let counter = Arc::new(Counter::default());
            shared.store.watch(Arc::clone(&counter) as Arc<dyn Watcher>, shared.now());
            counter
        });
        let numbers = shared.store.namespaces(|name| owner(name) == tenant);
        let counts = counter.lock();
        numbers.iter().filter_map(|number| counts.entries.get(number)).sum()
    }
}

impl Counter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn put(&mut self, place: u32, namespace: u32) {
        let place = place as usize;
        if self.places.len() <= place {
            self.places.resize(place + 1, VACANT);
        }
        let before = std::mem::replace(&mut self.places[place], namespace);
        if let Some(entries) = self.entries.get_mut(&before) {
            *entries -= 1;
        }
        if namespace != VACANT {
            *self.entries.entry(namespace).or_default() += 1;
        }
    }
}

impl Watcher for Counter {
    fn published(&self, place: u32, _: Key, entry: Entry, _: &[f16]) {
        self.lock().put(place, entry.namespace);
    }

    fn withdrawn(&self, place: u32) {
        self.lock().put(place, VACANT);
    }
}

impl Sum for Holdings {
    /// All together, as of several models.
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, more| Self {
            entries: sum.entries + more.entries,
            bytes: sum.bytes + more.bytes,
        })
    }
}
