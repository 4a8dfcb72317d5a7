//! Two that keep nothing on disk: moka, a concurrent cache with eviction, and the standard map behind a lock.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use moka::sync::Cache;

use crate::data::{Batch, Key, decode_bytes};
use crate::engine::{Engine, Setting};

struct Moka(Cache<Key, Arc<[u8]>>);

pub(crate) fn open_moka(_: &Path, setting: Setting) -> Box<dyn Engine> {
    // Room to spare: it refuses some entries before it is full.
    Box::new(Moka(Cache::builder().max_capacity(2 * setting.entries).build()))
}

impl Engine for Moka {
    fn put(&self, batch: &Batch) {
        batch.values().for_each(|(key, value)| self.0.insert(*key, Arc::from(value)));
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        self.0.get(key).inspect(|value| decode_bytes(value, out)).is_some()
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }
}

struct Map(RwLock<HashMap<Key, Box<[u8]>>>);

pub(crate) fn open_map(_: &Path, _: Setting) -> Box<dyn Engine> {
    Box::new(Map(RwLock::default()))
}

impl Engine for Map {
    fn put(&self, batch: &Batch) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        batch.values().for_each(|(key, value)| {
            map.insert(*key, Box::from(value));
        });
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.get(key).inspect(|value| decode_bytes(value, out)).is_some()
    }
}
