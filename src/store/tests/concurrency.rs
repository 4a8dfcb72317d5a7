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

/// A row that says in each of its values whose it is and which edition.
fn telling_row(n: u32, edition: u32, dims: usize) -> Vec<f16> {
    (0..dims as u32).map(|place| f16::from_bits(((n << 9 | edition & 0x1ff) ^ place & 1) as u16)).collect()
}

/// The smallest capacities make every put reuse a slot that a reader may just have found.
#[test]
fn slots_are_not_reused_under_a_reader() {
    const DIMS: usize = 512;
    const NUMBERS: u32 = 24;
    let rounds = if long() { 200_000 } else { 4_000 };
    let folder = quick_folder();
    let config = Config { capacity_entries: 8, ..Config::default() };
    let store = Store::open(folder.path(), &version("m"), DIMS, &config).unwrap();
    let done = AtomicBool::new(false);
    let seen = AtomicUsize::new(0);
    let check = |n: u32, entry: &Entry, row: &[f16]| {
        let expected = telling_row(n, entry.norm as u32, DIMS);
        assert_eq!(row, expected, "number {n}, edition {}", entry.norm);
        // Still, after the writer has had time to take the slot.
        std::thread::yield_now();
        assert_eq!(row, expected, "number {n}, edition {}, a moment later", entry.norm);
        seen.fetch_add(1, SeqCst);
    };
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (store, done, check) = (&store, &done, &check);
            scope.spawn(move || {
                let mut random = Random::new(thread + 1);
                let keys: Vec<Key> = (0..NUMBERS).map(key).collect();
                while !done.load(SeqCst) {
                    let first = random.below(keys.len());
                    let batch = &keys[first..keys.len().min(first + 1 + random.below(9))];
                    store.get_many(batch, NOW, |index, entry, row| check((first + index) as u32, &entry, row)).unwrap();
                    if random.one_in(8) {
                        let mut cursor = Cursor::default();
                        let number = |key: &Key| keys.iter().position(|other| other == key).unwrap() as u32;
                        store.scan(&mut cursor, NOW, 5, |key, entry, row| check(number(&key), &entry, row)).unwrap();
                    }
                    if random.one_in(32) {
                        assert_eq!(store.scrub(8).damaged, 0);
                        assert!(store.select(&Selector::All, NOW).unwrap().len() <= 8);
                    }
                }
            });
        }
        let writers: Vec<_> = (0..2_u64)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let mut random = Random::new(writer + 100);
                    let namespace = Namespace::default();
                    for edition in 0..rounds {
                        let numbers: Vec<u32> =
                            (0..=random.below(3)).map(|_| random.below(NUMBERS as usize) as u32).collect();
                        let rows: Vec<_> = numbers.iter().map(|&n| telling_row(n, edition, DIMS)).collect();
                        let entry = |(&n, row): (&u32, &'_ Vec<f16>)| (key(n), row.clone());
                        let owned: Vec<_> = numbers.iter().zip(&rows).map(entry).collect();
                        let replace = random.one_in(2);
                        let entries: Vec<_> = owned
                            .iter()
                            .map(|(key, row)| NewEntry {
                                replace,
                                ..NewEntry::new(*key, row, edition as f32, &namespace)
                            })
                            .collect();
                        store.put_many(&entries, NOW).unwrap();
                        match random.below(6) {
                            0 => drop(store.remove_many(&[key(numbers[0])]).unwrap()),
                            1 => drop(store.mark_stale(&[key(numbers[0]), key(numbers[0] + 1)], NOW).unwrap()),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, SeqCst);
    });
    let info = store.info();
    println!("{seen:?} rows were read, {} evicted, {} replaced, {} removed", info.evicted, info.replaced, info.removed);
    assert!(seen.into_inner() > 1000 && info.evicted > 100 && info.replaced > 100 && info.removed > 100);
    assert_eq!((info.quarantined, info.write_errors), (0, 0));
}

const CHILD: &str = "VECMEMO_TEST_SECOND_WRITER";

#[test]
fn a_second_process_cannot_write_to_the_folder() {
    let open = |folder: &Path| Store::open(folder, &version("m"), DIMS, &config(8));
    if let Some(folder) = std::env::var_os(CHILD) {
        assert!(matches!(open(Path::new(&folder)), Err(StoreError::InUse { .. })));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let second = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["store::tests::concurrency::a_second_process_cannot_write_to_the_folder", "--exact"])
            .env(CHILD, folder.path())
            .output()
            .unwrap()
    };
    let store = open(folder.path()).unwrap();
    put(&store, 0..3).unwrap();
    let refused = second();
    assert!(refused.status.success(), "{refused:?}");
    assert_eq!(served(&store, 0..3, NOW).len(), 3);
    drop(store);
    assert!(!second().status.success(), "it is let in when the first has ended");
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
    let config = Config { capacity_entries: 16, durability: Durability::Always, ..Config::default() };
    // Each put writes its row and its record.
    let disk = move |file| -> Arc<dyn Disk> {
        let syncs = Arc::clone(&shared);
        Arc::new(Slow { file, writes: Mutex::new(0), written: Condvar::new(), wanted: 2 * PUTS, syncs })
    };
    let store = Store::open_on(Arc::new(Below(disk)), folder.path(), &version("m"), DIMS, &config).unwrap();
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
