//! Namespaces that may have so many entries, and entries that are more durable than the store.

use super::*;
use std::collections::HashMap;

fn named(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// Puts numbers into a namespace that may have `quota` entries.
fn put_in(store: &Store, name: &str, numbers: impl IntoIterator<Item = u32>, quota: Option<u64>, pinned: bool) {
    let namespace = named(name);
    let rows: Vec<_> = numbers.into_iter().map(|number| (number, row(number, 0))).collect();
    let entries: Vec<_> = rows
        .iter()
        .map(|(number, row)| NewEntry { quota, pinned, ..NewEntry::new(key(*number), row, 1.0, &namespace) })
        .collect();
    store.put_many(&entries, NOW).unwrap();
}

/// The numbers below 1,000 that a namespace has.
fn kept(store: &Store, name: &str) -> Vec<u32> {
    let numbers: HashMap<Key, u32> = (0..1000).map(|number| (key(number), number)).collect();
    let found = store.select(&Selector::Namespace(&named(name)), NOW).unwrap();
    let mut kept: Vec<u32> = found.iter().map(|key| numbers[key]).collect();
    kept.sort_unstable();
    kept
}

#[test]
fn a_namespace_has_no_more_than_it_may_and_the_others_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1000);
    put_in(&store, "free", 0..20, None, false);
    for number in 100..120 {
        put_in(&store, "bound", [number], Some(5), false);
        assert!(kept(&store, "bound").len() <= 5);
    }
    assert_eq!(kept(&store, "bound"), (115..120).collect::<Vec<_>>(), "the oldest have gone");
    assert_eq!(kept(&store, "free").len(), 20);
    assert_eq!((store.info().over_quota, store.info().evicted, store.info().removed), (15, 0, 0));
    // More at once than there may be: the last of them stay. Those that are there count once.
    put_in(&store, "bound", 118..140, Some(5), false);
    assert_eq!(kept(&store, "bound"), (135..140).collect::<Vec<_>>());
    store.remove_many(&[key(135), key(136)]).unwrap();
    put_in(&store, "bound", [200, 201], Some(5), false);
    assert_eq!(kept(&store, "bound"), [137, 138, 139, 200, 201], "what was removed has made room");
    put_in(&store, "bound", [202], Some(2), false);
    assert_eq!(kept(&store, "bound"), [201, 202], "a smaller bound holds from the next entry on");
    put_in(&store, "bound", 203..210, None, false);
    assert_eq!(kept(&store, "bound").len(), 9, "and none when there is none any more");
}

#[test]
fn what_is_read_is_passed_by_once_and_what_is_pinned_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1000);
    put_in(&store, "bound", 0..4, Some(4), false);
    assert_eq!(served(&store, [0, 1], NOW).len(), 2);
    put_in(&store, "bound", [4, 5], Some(4), false);
    assert_eq!(kept(&store, "bound"), [0, 1, 4, 5]);
    put_in(&store, "bound", [6, 7], Some(4), false);
    assert_eq!(kept(&store, "bound"), [0, 1, 6, 7], "they stand behind those that came meanwhile, unless read again");
    put_in(&store, "bound", [8, 9], Some(4), false);
    assert_eq!(kept(&store, "bound"), [6, 7, 8, 9]);
    put_in(&store, "bound", 10..14, Some(4), true);
    assert_eq!(kept(&store, "bound"), [10, 11, 12, 13], "pinned ones count");
    put_in(&store, "bound", [14], Some(4), false);
    assert_eq!(kept(&store, "bound"), [10, 11, 12, 13], "there is no room for another");
    put_in(&store, "bound", [15], Some(4), true);
    assert_eq!(kept(&store, "bound"), [10, 11, 12, 13, 15], "and none of them makes room");
    // All read, all the time: somebody has to go.
    put_in(&store, "busy", 100..104, Some(4), false);
    assert_eq!(served(&store, 100..104, NOW).len(), 4);
    put_in(&store, "busy", [104], Some(4), false);
    assert_eq!(kept(&store, "busy").len(), 4);
}

/// Nothing of it is on disk: whoever opens the folder finds the same from the records.
#[test]
fn a_bound_holds_over_restarts_whether_the_end_was_clean_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1000);
    put_in(&store, "bound", 0..10, Some(10), false);
    put_in(&store, "bound", [10], Some(10), false);
    let crashed = crashed_copy(folder.path());
    drop(store);
    for folder in [&folder, &crashed] {
        let store = open(folder.path(), 1000);
        assert_eq!(kept(&store, "bound"), (1..11).collect::<Vec<_>>());
        put_in(&store, "bound", [20], Some(10), false);
        let mut expected: Vec<u32> = (2..11).collect();
        expected.push(20);
        assert_eq!(kept(&store, "bound"), expected, "the oldest is known");
    }
}

/// Whatever happens to entries, a namespace's count is that of its entries.
#[test]
fn whatever_is_put_removed_and_replaced_the_bounds_hold() {
    let folder = quick_folder();
    let store = open(folder.path(), 64);
    let mut random = Random::new(7);
    let mut owner: HashMap<u32, usize> = HashMap::new();
    for round in 0..4000 {
        let quota = [Some(3), Some(9), None];
        match random.below(8) {
            0 => {
                let number = random.below(200) as u32;
                store.remove_many(&[key(number)]).unwrap();
            }
            1 => {
                store.mark_stale(&[key(random.below(200) as u32)], NOW).unwrap();
            }
            2 => drop(served(&store, [random.below(200) as u32], NOW)),
            _ => {
                // A key is of one namespace for ever.
                let number = random.below(200) as u32;
                let of = *owner.entry(number).or_insert_with(|| random.below(3));
                put_in(&store, ["a", "b", "c"][of], [number], quota[of], random.one_in(50));
            }
        }
        let (pinned_a, pinned_b) = (pinned(&store, "a"), pinned(&store, "b"));
        for (name, quota, pinned) in [("a", 3, pinned_a), ("b", 9, pinned_b)] {
            let count = kept(&store, name).len();
            assert!(count <= quota.max(pinned), "round {round}: {count} in {name}, {pinned} of them pinned");
        }
    }
    assert!(store.info().over_quota > 100);
}

fn pinned(store: &Store, name: &str) -> usize {
    let keys = store.select(&Selector::Namespace(&named(name)), NOW).unwrap();
    store.contains_many(&keys, NOW).into_iter().flatten().filter(|entry| entry.pinned).count()
}

#[test]
fn an_entry_that_is_to_last_is_synced_before_its_put_returns() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 64);
    let namespace = Namespace::default();
    let mut numbers = 0..;
    let mut syncs_of = |durabilities: &[Option<Durability>]| {
        let rows: Vec<_> = numbers.by_ref().take(durabilities.len()).map(|number| (number, row(number, 0))).collect();
        let entries: Vec<_> = rows
            .iter()
            .zip(durabilities)
            .map(|((number, row), &durability)| {
                let entry = NewEntry::new(key(*number), row, 1.0, &namespace);
                NewEntry { durability, ..entry }
            })
            .collect();
        let before = store.info().syncs;
        store.put_many(&entries, NOW).unwrap();
        store.info().syncs - before
    };
    let always = Some(Durability::Always);
    assert_eq!(syncs_of(&[None, None]), 0);
    assert_eq!(syncs_of(&[None, Some(Durability::Process)]), 0);
    assert_eq!(syncs_of(&[None, always, always]), 1, "one for all that are put together");
    assert_eq!(syncs_of(&[always]), 1);
    assert_eq!(syncs_of(&[None]), 0, "the others pay nothing");
    // Soon, and by nobody who waits; from now on for all.
    let before = store.info().syncs;
    syncs_of(&[Some(Durability::Interval(Duration::from_millis(20)))]);
    until("it is synced", || store.info().syncs > before);
}

#[test]
fn of_two_durabilities_the_stronger_counts() {
    let [short, long] = [10, 20].map(|ms| Durability::Interval(Duration::from_millis(ms)));
    let (process, always) = (Durability::Process, Durability::Always);
    for (one, other, stronger) in [
        (process, process, process),
        (process, long, long),
        (short, long, short),
        (long, always, always),
        (process, always, always),
    ] {
        assert_eq!((one.stronger(other), other.stronger(one)), (stronger, stronger));
    }
}
