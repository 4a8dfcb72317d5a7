//! redb: a copy-on-write tree with a cache of its own, large enough here to hold everything.

use std::path::Path;

use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition};

use crate::data::{Batch, Key, decode_bytes};
use crate::engine::{Engine, Setting};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const CACHE_BYTES: usize = 4 << 30;

struct Redb {
    database: Database,
    durability: Durability,
}

pub(crate) fn open(folder: &Path, setting: Setting) -> Box<dyn Engine> {
    let database =
        Builder::new().set_cache_size(CACHE_BYTES).create(folder.join("rows.redb")).expect("the folder is ours alone");
    if database.begin_read().expect("the file is whole").open_table(TABLE).is_err() {
        let transaction = database.begin_write().expect("there is no other writer");
        transaction.open_table(TABLE).expect("the table is of this type");
        transaction.commit().expect("the disk has room");
    }
    let durability = if setting.durable { Durability::Immediate } else { Durability::None };
    Box::new(Redb { database, durability })
}

impl Engine for Redb {
    fn put(&self, batch: &Batch) {
        let mut transaction = self.database.begin_write().expect("writers take turns");
        transaction.set_durability(self.durability).expect("there are no savepoints");
        {
            let mut table = transaction.open_table(TABLE).expect("the table is of this type");
            for (key, value) in batch.values() {
                table.insert(&key[..], value).expect("the disk has room");
            }
        }
        transaction.commit().expect("the disk has room");
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        self.get_many(std::slice::from_ref(key), out) == 1
    }

    fn get_many(&self, keys: &[Key], out: &mut [f32]) -> usize {
        let dims = out.len() / keys.len();
        let transaction = self.database.begin_read().expect("the file is whole");
        let table = transaction.open_table(TABLE).expect("the table is there since open");
        let mut found = 0;
        for (key, out) in keys.iter().zip(out.chunks_exact_mut(dims)) {
            if let Some(value) = table.get(&key[..]).expect("the file is whole") {
                decode_bytes(value.value(), out);
                found += 1;
            }
        }
        found
    }
}
