//! fjall: a log-structured merge tree, with a cache large enough here to hold everything.

use std::path::Path;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::data::{Batch, Key, decode_bytes};
use crate::engine::{Engine, Setting};

const CACHE_BYTES: u64 = 2 << 30;

struct Fjall {
    database: Database,
    rows: Keyspace,
    durable: bool,
}

pub(crate) fn open(folder: &Path, setting: Setting) -> Box<dyn Engine> {
    let database = Database::builder(folder).cache_size(CACHE_BYTES).open().expect("the folder is ours alone");
    let rows = database.keyspace("rows", KeyspaceCreateOptions::default).expect("the disk has room");
    Box::new(Fjall { database, rows, durable: setting.durable })
}

impl Engine for Fjall {
    fn put(&self, batch: &Batch) {
        let mut writes = self.database.batch();
        for (key, value) in batch.values() {
            writes.insert(&self.rows, &key[..], value);
        }
        writes.commit().expect("the disk has room");
        if self.durable {
            self.database.persist(PersistMode::SyncAll).expect("the disk syncs");
        }
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        let value = self.rows.get(key).expect("the files are whole");
        value.inspect(|value| decode_bytes(value, out)).is_some()
    }

    fn settle(&self) {
        while self.database.outstanding_flushes() > 0 || self.database.active_compactions() > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
