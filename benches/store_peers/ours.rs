//! Our store as it ships: eviction, expiry, tags and checks are on. Every fourth entry expires (a day later).

use std::path::Path;

use vecmemo::domain::{FingerprintBuilder, Namespace};
use vecmemo::store::{Config, Durability, NewEntry, Store};

use crate::data::{Batch, Key, NOW, decode};
use crate::engine::{Engine, Setting};

const DAY_SECONDS: u32 = 86_400;

struct Ours {
    store: Store,
    namespace: Namespace,
}

pub(crate) fn open(folder: &Path, setting: Setting) -> Box<dyn Engine> {
    let durability = if setting.durable { Durability::Always } else { Durability::Process };
    let config = Config { capacity_entries: setting.entries, durability, ..Config::default() };
    let model = FingerprintBuilder::new().finish();
    let store = Store::open(folder, &model, setting.dims, &config).expect("the folder is ours alone");
    Box::new(Ours { store, namespace: Namespace::default() })
}

impl Engine for Ours {
    fn put(&self, batch: &Batch) {
        let entries: Vec<_> = batch
            .rows()
            .enumerate()
            .map(|(number, (&key, row))| NewEntry {
                expires: number.is_multiple_of(4).then_some(NOW + DAY_SECONDS),
                ..NewEntry::new(bytemuck::cast(key), row, 1.0, &self.namespace)
            })
            .collect();
        self.store.put_many(&entries, NOW).expect("the disk has room");
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        self.get_many(std::slice::from_ref(key), out) == 1
    }

    fn get_many(&self, keys: &[Key], out: &mut [f32]) -> usize {
        let dims = out.len() / keys.len();
        let mut found = 0;
        self.store
            .get_many(bytemuck::cast_slice(keys), NOW, |index, _, row| {
                decode(row, &mut out[index * dims..(index + 1) * dims]);
                found += 1;
            })
            .expect("nobody cuts the file");
        found
    }
}
