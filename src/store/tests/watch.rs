//! What a watcher is told is what there is.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;

/// An entry: its key, sequence and row.
type Told = (Key, u64, Vec<f16>);

/// What a watcher knows, by place.
#[derive(Default)]
struct Known(Mutex<HashMap<u32, Told>>);

impl Watcher for Known {
    fn published(&self, place: u32, key: Key, entry: Entry, row: &[f16]) {
        self.0.lock().unwrap().insert(place, (key, entry.sequence, row.to_vec()));
    }

    fn withdrawn(&self, place: u32) {
        self.0.lock().unwrap().remove(&place);
    }
}

impl Known {
    fn sorted(&self) -> Vec<Told> {
        let mut known: Vec<_> = self.0.lock().unwrap().values().cloned().collect();
        known.sort_by_key(|(key, ..)| *key);
        known
    }
}

/// What the store itself says there is.
fn scanned(store: &Store, now: u32) -> Vec<Told> {
    let mut found = Vec::new();
    let mut cursor = Cursor::default();
    while store.scan(&mut cursor, now, 7, |key, entry, row| found.push((key, entry.sequence, row.to_vec()))).unwrap()
        > 0
    {}
    found.sort_by_key(|(key, ..)| *key);
    found
}

#[test]
fn a_watcher_knows_what_there_is_after_every_kind_of_change() {
    let folder = quick_folder();
    let namespace = Namespace::default();
    let known = Arc::new(Known::default());
    let mut store = open(folder.path(), 64);
    let mut random = Random::new(20_261_121);
    let mut now = NOW;
    for step in 0..3_000 {
        if step % 500 == 250 {
            // Watching begins where there is something already; after a clean close and after none.
            drop(store);
            store = open(folder.path(), 64);
            known.0.lock().unwrap().clear();
            store.watch(known.clone(), now);
        }
        let n = random.below(120) as u32;
        match random.below(8) {
            0..4 => {
                let unit = row(n, step % 5);
                let entry = NewEntry {
                    replace: random.one_in(2),
                    expires: random.one_in(4).then(|| now + 1 + random.below(40) as u32),
                    ..NewEntry::new(key(n), &unit, 1.0, &namespace)
                };
                store.put_many(&[entry], now).unwrap();
            }
            4 => put(&store, n..n + random.below(30) as u32).unwrap(),
            5 => drop(store.remove_many(&[key(n), key(n + 1)]).unwrap()),
            6 => drop(store.mark_stale(&[key(n)], now).unwrap()),
            _ => {
                now += random.below(3) as u32;
                store.sweep_expired(now).unwrap();
            }
        }
        if step > 250 {
            // Expired entries are withdrawn when they are swept, not when they expire.
            store.sweep_expired(now).unwrap();
            assert_eq!(known.sorted(), scanned(&store, now), "after step {step}");
        }
    }
    assert!(store.info().evicted > 0 && store.info().expired > 0 && store.info().replaced > 0);
}

#[test]
fn nothing_is_missed_while_the_watching_begins() {
    let folder = quick_folder();
    let store = open(folder.path(), 20_000);
    put(&store, 0..10_000).unwrap();
    let known = Arc::new(Known::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..1_000 {
                put(&store, [20_000 + n]).unwrap();
                store.remove_many(&[key(9 * n)]).unwrap();
            }
        });
        store.watch(known.clone(), NOW);
    });
    assert_eq!(known.sorted(), scanned(&store, NOW));
}

#[test]
fn peeking_is_no_use_as_far_as_eviction_is_concerned() {
    let evicted = |look: &dyn Fn(&Store)| {
        let folder = quick_folder();
        let store = open(folder.path(), 64);
        put(&store, 0..64).unwrap();
        look(&store);
        for n in 64..96 {
            put(&store, [n]).unwrap();
        }
        served(&store, 0..64, NOW).into_keys().collect::<Vec<_>>()
    };
    let keys: Vec<Key> = (0..20).map(key).collect();
    let untouched = evicted(&|_| {});
    let used = evicted(&|store| store.get_many(&keys, NOW, |_, _, _| {}).unwrap());
    assert_eq!(evicted(&|store| store.peek_many(&keys, NOW, |_, _, _| {}).unwrap()), untouched);
    assert_ne!(used, untouched);
}
