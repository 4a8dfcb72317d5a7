//! LMDB through heed: a copy-on-write tree behind a map. Without durability it is opened with `NO_SYNC`.

#![expect(unsafe_code, reason = "heed leaves it to its caller that nobody else changes the file")]

use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};

use crate::data::{Batch, Key, decode_bytes};
use crate::engine::{Engine, Setting};

struct Lmdb {
    env: Env,
    database: Database<'static, Bytes, Bytes>,
}

pub(crate) fn open(folder: &Path, setting: Setting) -> Box<dyn Engine> {
    let mut options = EnvOpenOptions::new();
    // Address space, not disk: rows of a tree fill its pages by half at the worst.
    options.map_size((1 << 30) + setting.entries as usize * (2 * setting.dims + 256) * 4).max_readers(64);
    if !setting.durable {
        // SAFETY: a crash of the system may cost the file, which is this bench's own.
        unsafe { options.flags(EnvFlags::NO_SYNC) };
    }
    // SAFETY: the folder is this bench's own, and opened once at a time.
    let env = unsafe { options.open(folder) }.expect("the folder is ours alone");
    let transaction = env.write_txn().expect("there is no other writer");
    let database = env
        .create_databases_and_commit(transaction, |opener, transaction| {
            opener.create_database(transaction, None).map(CommitOrAbort::<_, ()>::Commit)
        })
        .expect("the disk has room")
        .unwrap_commit();
    Box::new(Lmdb { env, database })
}

impl Engine for Lmdb {
    fn put(&self, batch: &Batch) {
        let mut transaction = self.env.write_txn().expect("writers take turns");
        for (key, value) in batch.values() {
            self.database.put(&mut transaction, key, value).expect("the map has room");
        }
        transaction.commit().expect("the disk has room");
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        self.get_many(std::slice::from_ref(key), out) == 1
    }

    fn get_many(&self, keys: &[Key], out: &mut [f32]) -> usize {
        let dims = out.len() / keys.len();
        let transaction = self.env.read_txn().expect("there are readers to spare");
        let mut found = 0;
        for (key, out) in keys.iter().zip(out.chunks_exact_mut(dims)) {
            if let Some(value) = self.database.get(&transaction, key).expect("the file is whole") {
                decode_bytes(value, out);
                found += 1;
            }
        }
        found
    }
}
