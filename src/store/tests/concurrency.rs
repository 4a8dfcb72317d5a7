//! Many readers beside writers: what is served always belongs to its key, and waits are shared.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};

use super::*;

#[test]
fn readers_never_see_another_keys_row_while_slots_are_reused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 32);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = 0;
                while !done.load(SeqCst) || seen == 0 {
                    let found = served(&store, 0..100, NOW);
                    assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)));
                    seen += found.len();
                }
            });
        }
        let writers: Vec<_> = (0..2_u32)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..1500_u32 {
                        let n = (round * 7 + writer * 50) % 97;
                        put(store, n..n + 3).unwrap();
                        if round % 5 == 0 {
                            store.remove_many(&[key(n)]).unwrap();
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, SeqCst);
    });
    let info = store.info();
    assert!(info.entries <= 32 && info.evicted > 0);
    assert_eq!(info.quarantined, 0);
}

/// A disk whose first sync takes until so many writes have come.
struct Slow {
    file: File,
    writes: Mutex<usize>,
    written: Condvar,
    wanted: usize,
    syncs: Arc<AtomicUsize>,
}

impl Disk for Slow {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.file, bytes, offset)?;
        *self.writes.lock().unwrap() += 1;
        self.written.notify_all();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, SeqCst);
        drop(self.written.wait_while(self.writes.lock().unwrap(), |writes| *writes < self.wanted).unwrap());
        self.file.sync_data()
    }
}

#[test]
fn puts_that_wait_at_the_same_time_share_a_sync() {
    const PUTS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let shared = Arc::clone(&syncs);
    let config = Config { capacity_entries: 16, durability: Durability::Always };
    // Each put writes its row and its record.
    let disk = |file| -> Arc<dyn Disk> {
        Arc::new(Slow { file, writes: Mutex::new(0), written: Condvar::new(), wanted: 2 * PUTS, syncs: shared })
    };
    let store = Store::open_on(folder.path(), &version("m"), DIMS, &config, disk).unwrap();
    std::thread::scope(|scope| {
        for n in 0..PUTS as u32 {
            let store = &store;
            scope.spawn(move || put(store, [n]).unwrap());
        }
    });
    // One is held up until all have written; one more covers them, but for the last, which may come a moment late.
    assert!(syncs.load(SeqCst) <= 3, "{syncs:?}");
    assert_eq!(served(&store, 0..PUTS as u32, NOW).len(), PUTS);
}
