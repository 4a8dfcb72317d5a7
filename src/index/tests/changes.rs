//! Rows that come, go and are replaced, also while searches run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::*;

fn nearest(index: &Index, rows: &dyn Rows, vector: &[f32]) -> Vec<Hit> {
    index.search(&[Query::new(vector, 10)], &Filter::all(0), rows).unwrap().remove(0)
}

#[test]
fn the_later_row_stays_in_its_place() {
    let index = Index::new(2);
    let (east, north) = (halves(&[1.0, 0.0]), halves(&[0.0, 1.0]));
    let set = |sequence, number, unit| index.set(Row { sequence, key: key(number), ..row(9, unit) });
    let mut store = Store::default();
    store.rows.insert(key(1), (1, east.clone()));
    store.rows.insert(key(2), (2, north.clone()));
    let keys = |index: &Index| nearest(index, &store, &[1.0, 0.0]).iter().map(|hit| hit.key).collect::<Vec<_>>();

    set(2, 2, &north);
    set(1, 1, &east);
    assert_eq!(keys(&index), [key(2)]);
    index.clear(9);
    assert_eq!((keys(&index), index.len()), (vec![], 0));
    set(1, 1, &east);
    assert_eq!((keys(&index), index.len()), (vec![key(1)], 1));
    index.clear(1_000_000);
}

#[test]
fn a_row_that_cannot_be_found_takes_its_place_all_the_same() {
    let index = Index::new(2);
    let (east, nothing) = (halves(&[1.0, 0.0]), halves(&[f32::NAN, 0.0]));
    let mut store = Store::default();
    store.rows.insert(key(3), (4, east.clone()));
    index.set(row(3, &east));
    assert_eq!(nearest(&index, &store, &[1.0, 0.0]).len(), 1);
    index.set(row(3, &nothing));
    assert_eq!((nearest(&index, &store, &[1.0, 0.0]).len(), index.len()), (0, 0));
}

#[test]
fn memory_is_taken_where_there_are_rows() {
    let index = Index::new(384);
    let before = index.memory_bytes();
    index.set(row(5_000_000, &halves(&Numbers(1).unit(384))));
    let one = index.memory_bytes() - before;
    assert!((384 * 1024..2_000_000).contains(&one), "{one}");
    index.set(row(5_000_001, &halves(&Numbers(2).unit(384))));
    assert_eq!(index.memory_bytes() - before, one);
}

/// While a key is replaced it has two places. It is found once, as what is shown.
#[test]
fn a_row_in_two_places_is_found_once() {
    let index = Index::new(2);
    let (east, north) = (halves(&[1.0, 0.0]), halves(&[0.0, 1.0]));
    let mut store = Store::default();
    store.rows.insert(key(1), (7, north.clone()));
    index.set(Row { sequence: 6, key: key(1), ..row(1, &east) });
    index.set(Row { sequence: 7, key: key(1), ..row(2, &north) });
    let hits = nearest(&index, &store, &[1.0, 0.0]);
    assert_eq!(hits, [Hit { key: key(1), similarity: 0.0, place: 2, sequence: 7 }]);
}

/// Rows that are shown and then taken back once.
struct Hesitant(Store, AtomicBool);

impl Rows for Hesitant {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        self.0.read(keys, found) && self.1.swap(true, Ordering::Relaxed)
    }
}

#[test]
fn what_must_be_forgotten_is_asked_for_again() {
    let rows = clustered(100, 8, &mut Numbers(3));
    let (index, store) = filled(&rows);
    let vector = Numbers(4).unit(8);
    let expected = compared(&rows, &Query::new(&vector, 10), &Filter::all(0));
    assert_eq!(seen(&nearest(&index, &Hesitant(store, AtomicBool::new(false)), &vector)), expected);
}

/// Rows that may change while they are read.
struct Living(Mutex<Store>);

impl Rows for Living {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        self.0.lock().unwrap().read(keys, found)
    }
}

/// A key's vector is made from its sequence number, so whoever sees a hit can tell what its similarity must be. Half of
/// the keys stay as they are: those are in every answer. The last one that was set is found by the next search.
#[test]
fn searches_beside_changes_see_whole_rows_and_all_that_stay() {
    search_beside_changes(Index::new(DIMS));
}

/// How many values the rows of [`search_beside_changes`] have.
pub(in crate::index) const DIMS: usize = 16;

/// Searches an empty index while rows come and go, and looks at what it answers.
pub(in crate::index) fn search_beside_changes(index: Index) {
    let vector_of = |number: u32, sequence: u64| Numbers(u64::from(number) << 32 | sequence).unit(DIMS);
    let store = Living(Mutex::default());
    let set = |number: u32, sequence: u64| {
        let unit = halves(&vector_of(number, sequence));
        store.0.lock().unwrap().rows.insert(key(number), (sequence, unit.clone()));
        index.set(Row { sequence, expires: None, ..row(number, &unit) });
    };
    (0..200).for_each(|number| set(number, 1));
    let (stop, last) = (AtomicBool::new(false), AtomicU64::new(1));
    thread::scope(|scope| {
        scope.spawn(|| {
            for sequence in 2.. {
                let number = 100 + (sequence * 7 % 100) as u32;
                if sequence % 3 == 0 {
                    store.0.lock().unwrap().rows.remove(&key(number));
                    index.clear(number);
                } else {
                    set(number, sequence);
                    last.store(sequence, Ordering::SeqCst);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut numbers = Numbers(8);
        for _ in 0..300 {
            let vector = numbers.unit(DIMS);
            let begun = last.load(Ordering::SeqCst);
            let hits = index.search(&[Query::new(&vector, 300)], &Filter::all(0), &store).unwrap().remove(0);
            let ended = last.load(Ordering::SeqCst);
            let mut stayed = 0;
            for hit in &hits {
                let number = u32::from_be_bytes(hit.key.as_bytes()[..4].try_into().unwrap());
                assert_eq!(hit.similarity, similarity(&vector, &halves(&vector_of(number, hit.sequence))));
                stayed += usize::from(number < 100);
            }
            assert_eq!(stayed, 100);
            assert!(hits.is_sorted_by(|a, b| a.similarity > b.similarity || a.key < b.key));
            let number = 100 + (begun * 7 % 100) as u32;
            let undisturbed = ended == begun && begun % 3 != 2;
            assert!(!undisturbed || begun == 1 || hits.iter().any(|hit| hit.key == key(number)), "{begun}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}
