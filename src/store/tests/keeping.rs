//! What is kept, what goes, and what is left for the next open: pins, sweeps, scrubbing, bounds, the table of a clean close.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;

/// Puts a number's first edition, in all else like the entry given.
fn put_like(store: &Store, n: u32, like: NewEntry<'_>) -> Result<(), StoreError> {
    let row = row(n, 0);
    store.put_many(&[NewEntry { key: key(n), unit: &row, norm: n as f32, ..like }], NOW)
}

fn plain(namespace: &Namespace) -> NewEntry<'_> {
    NewEntry::new(key(0), &[], 0.0, namespace)
}

fn system_now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
}

#[test]
fn a_pinned_entry_is_never_evicted_and_a_store_full_of_them_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let none = Namespace::default();
    let store = open(folder.path(), 16);
    for n in 0..4 {
        put_like(&store, n, NewEntry { pinned: true, ..plain(&none) }).unwrap();
    }
    for n in 4..200 {
        put(&store, [n]).unwrap();
    }
    assert_eq!(served(&store, 0..4, NOW).len(), 4);
    assert_eq!((store.info().entries, store.info().pinned), (16, 4));
    drop(store);
    let store = open(folder.path(), 16);
    assert_eq!(store.info().pinned, 4, "known after a reopen");
    put(&store, 200..300).unwrap();
    assert_eq!(served(&store, 0..4, NOW).len(), 4, "and heeded");

    for n in 4..16 {
        put_like(&store, n, NewEntry { pinned: true, replace: true, ..plain(&none) }).unwrap();
    }
    let error = put(&store, [99]).unwrap_err();
    assert!(matches!(error, StoreError::Full { pinned: 16, .. }), "{error}");
    assert_eq!(served(&store, 0..16, NOW).len(), 16, "nothing was lost by it");
    store.remove_many(&[key(7)]).unwrap();
    put(&store, [99]).unwrap();
    assert_eq!(store.info().pinned, 15);
}

#[test]
fn an_entry_marked_stale_is_served_with_everything_it_had_until_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 16);
    let tags = ["doc:1".to_owned()];
    let change =
        |entry| NewEntry { tags: &tags, payload: Some("{\"a\":1}"), pinned: true, expires: Some(NOW + 9), ..entry };
    let (unit, namespace) = (row(1, 0), Namespace::new("tenant").unwrap());
    store.put_many(&[change(NewEntry::new(key(1), &unit, 1.0, &namespace))], NOW).unwrap();
    let before = store.contains_many(&[key(1)], NOW)[0].unwrap();
    assert_eq!(store.mark_stale(&[key(1), key(1), key(2)], NOW + 1).unwrap(), 1);
    assert_eq!(store.mark_stale(&[key(1)], NOW + 1).unwrap(), 0, "it is marked already");
    drop(store);
    let store = open(folder.path(), 16);
    let after = store.contains_many(&[key(1)], NOW)[0].unwrap();
    assert_eq!(after, Entry { stale: true, sequence: after.sequence, ..before });
    assert_eq!(served(&store, [1], NOW)[&1].0, unit);
    assert_eq!((store.tags(&key(1)), store.payload(&key(1))), (tags.to_vec(), Some("{\"a\":1}".to_owned())));
    let newer = row(1, 5);
    store.put_many(&[NewEntry { replace: true, ..NewEntry::new(key(1), &newer, 1.0, &namespace) }], NOW).unwrap();
    assert!(!store.contains_many(&[key(1)], NOW)[0].unwrap().stale);
    assert_eq!(store.tags(&key(1)), tags, "tags and payload stay with the key");
}

#[test]
fn what_was_attached_to_an_entry_that_is_gone_is_not_the_next_ones() {
    let folder = tempfile::tempdir().unwrap();
    let none = Namespace::default();
    let store = open(folder.path(), 16);
    let (old, new) = (["old".to_owned()], ["new".to_owned()]);
    put_like(&store, 1, NewEntry { tags: &old, payload: Some("1"), expires: Some(NOW + 5), ..plain(&none) }).unwrap();
    store.remove_many(&[key(1)]).unwrap();
    put_like(&store, 1, NewEntry { tags: &new, expires: Some(NOW + 5), ..plain(&none) }).unwrap();
    assert_eq!((store.tags(&key(1)), store.payload(&key(1))), (new.to_vec(), None));
    assert!(store.select(&Selector::Tag("old"), NOW).unwrap().is_empty());
    // Expired is gone, too.
    let (unit, namespace) = (row(1, 0), Namespace::default());
    store.put_many(&[NewEntry { tags: &old, ..NewEntry::new(key(1), &unit, 1.0, &namespace) }], NOW + 5).unwrap();
    assert_eq!(store.tags(&key(1)), old);
    assert!(store.select(&Selector::TagPattern(&Pattern::new("n*")), NOW + 5).unwrap().is_empty());
    assert_eq!(store.select(&Selector::TagPattern(&Pattern::new("o?d")), NOW + 5).unwrap(), [key(1)]);
}

#[test]
fn entries_are_selected_by_namespace_and_age_and_a_payload_may_be_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let none = Namespace::default();
    let store = open(folder.path(), 16);
    let (unit, tenant) = (row(1, 0), Namespace::new("tenant").unwrap());
    store.put_many(&[NewEntry::new(key(1), &unit, 1.0, &tenant)], NOW).unwrap();
    put(&store, [2]).unwrap();
    store.put_many(&[NewEntry::new(key(3), &unit, 1.0, &tenant)], NOW + 100).unwrap();
    let select = |selector: Selector<'_>| store.select(&selector, NOW + 100).unwrap();
    assert_eq!(select(Selector::Namespace(&tenant)), [key(1), key(3)]);
    assert_eq!(select(Selector::Namespace(&Namespace::default())), [key(2)]);
    assert!(select(Selector::Namespace(&Namespace::new("unknown").unwrap())).is_empty());
    assert_eq!(select(Selector::CreatedBefore(NOW + 100)), [key(1), key(2)]);
    assert_eq!(select(Selector::Keys(&[key(3), key(3), key(9)])), [key(3)]);
    let ages = store.ages(NOW + 110);
    assert_eq!(ages, Ages { minute: 1, hour: 2, ..Ages::default() });
    let long = "x".repeat(PAYLOAD_BYTES_MAX + 1);
    let error = put_like(&store, 4, NewEntry { payload: Some(&long), ..plain(&none) }).unwrap_err();
    assert!(matches!(error, StoreError::PayloadTooLong { index: 0, bytes: 4097, .. }), "{error}");
    assert_eq!(store.clear().unwrap(), 3);
    assert_eq!((store.info().entries, store.info().removed), (0, 3));
}

#[test]
fn a_scan_shows_what_was_there_and_stays_once_whatever_is_written_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 256);
    put(&store, 0..100).unwrap();
    let (mut cursor, mut seen) = (Cursor::default(), Vec::new());
    let mut step = 0;
    while store.scan(&mut cursor, NOW, 7, |key, _, _| seen.push(key)).unwrap() > 0 {
        // Slots are freed before and behind the cursor, and taken by newcomers.
        store.remove_many(&[key(50 + step)]).unwrap();
        put(&store, [1000 + 2 * step, 1001 + 2 * step]).unwrap();
        step += 1;
    }
    let stayed: Vec<Key> = (0..50).chain(50 + step..100).map(key).collect();
    for key in &stayed {
        assert_eq!(seen.iter().filter(|seen| *seen == key).count(), 1);
    }
    assert!((1000..1000 + 2 * step).all(|n| !seen.contains(&key(n))), "newcomers are not shown");
}

#[test]
fn the_scrubber_finds_what_has_changed_since_it_was_read_and_it_is_erased() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        capacity_entries: 64,
        upkeep: Upkeep { scrub_bytes_per_second: 1 << 30, ..Upkeep::default() },
        ..Config::default()
    };
    let store = Store::open(folder.path(), &version("m"), DIMS, &config).unwrap();
    put(&store, 0..40).unwrap();
    assert_eq!(served(&store, 0..40, NOW).len(), 40, "every checksum was right");
    let layout = Layout::new(DIMS, 64).unwrap();
    flip(&space_path(folder.path()), layout.row_offset(11) + 1, 4);
    flip(&space_path(folder.path()), layout.record_offset(23) + 33, 1);
    until("the thread finds and erases both", || store.info().entries == 38);
    assert_eq!(store.info().quarantined, 2);
    let found = served(&store, 0..40, NOW);
    assert_eq!(found.len(), 38);
    assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)));
    until("and goes round and round", || store.info().scrub_passes > 2);
}

#[test]
fn expired_entries_are_swept_out_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let none = Namespace::default();
    let config = Config {
        capacity_entries: 64,
        upkeep: Upkeep { sweep_every: Duration::from_millis(20), ..Upkeep::default() },
        ..Config::default()
    };
    let store = Store::open(folder.path(), &version("m"), DIMS, &config).unwrap();
    let now = system_now();
    put_like(&store, 1, NewEntry { expires: Some(now - 1), ..plain(&none) }).unwrap();
    put_like(&store, 2, NewEntry { expires: Some(now + 1000), ..plain(&none) }).unwrap();
    until("the expired one goes", || store.info().entries == 1);
    assert_eq!(store.info().expired, 1);
    assert_eq!(store.sweep_expired(now + 999).unwrap(), 0);
    assert_eq!(store.sweep_expired(now + 1000).unwrap(), 1);
}

#[test]
fn a_clean_close_leaves_the_table_and_the_first_write_takes_it_away() {
    let folder = tempfile::tempdir().unwrap();
    let table = snapshot::path_for(&space_path(folder.path()));
    let store = open(folder.path(), 64);
    put(&store, 0..50).unwrap();
    store.remove_many(&[key(3), key(20)]).unwrap();
    assert!(!table.exists());
    drop(store);
    assert!(table.exists());
    // Opened and closed without a write, it stays and is used again.
    for _ in 0..2 {
        let store = open(folder.path(), 64);
        assert!(store.info().opened_clean);
        assert_eq!(served(&store, 0..50, NOW).len(), 48);
        assert_eq!(store.info().entries, 48);
    }
    let store = open(folder.path(), 64);
    put(&store, 50..60).unwrap();
    assert!(!table.exists(), "gone before the first byte was written");
    assert_eq!(served(&store, 0..60, NOW).len(), 58, "the free slots were known");
    let crashed = crashed_copy(folder.path());
    let recovered = open(crashed.path(), 64);
    assert!(!recovered.info().opened_clean);
    assert_eq!(served(&recovered, 0..60, NOW), served(&store, 0..60, NOW));
}

#[test]
fn a_table_of_another_state_of_the_file_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (space, table) = (space_path(folder.path()), snapshot::path_for(&space_path(folder.path())));
    put(&open(folder.path(), 64), 0..30).unwrap();
    let old = std::fs::read(&table).unwrap();
    let store = open(folder.path(), 64);
    store.remove_many(&[key(5)]).unwrap();
    put(&store, [31]).unwrap();
    drop(store);
    std::fs::write(&table, &old).unwrap();
    let store = open(folder.path(), 64);
    assert!(!store.info().opened_clean);
    assert!(served(&store, [5], NOW).is_empty());
    assert_eq!(served(&store, 0..40, NOW).len(), 30);
    drop(store);
    // The file changed, and nothing else.
    flip(&space, Layout::new(DIMS, 64).unwrap().row_offset(0), 1);
    assert!(!open(folder.path(), 64).info().opened_clean);
}

#[test]
fn bounds_in_bytes_lower_the_capacity_and_one_that_is_too_tight_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str, config: Config| Store::open(&folder.path().join(name), &version("m"), 384, &config);
    let disk = |bytes| Config { disk_bytes_max: Some(bytes), ..Config::default() };
    let memory = |bytes| Config { memory_bytes_max: Some(bytes), ..Config::default() };
    let capacity = |name, config| open(name, config).unwrap().info().capacity_entries;
    assert_eq!(capacity("plain", Config::default()), 1 << 20);
    let by_disk = capacity("disk", disk(100 << 20));
    assert!((60_000..126_000).contains(&by_disk), "{by_disk}");
    let store = open("memory", memory(24 << 20)).unwrap();
    let info = store.info();
    assert!(info.capacity_entries < 200_000 && info.memory_bytes < 24 << 20, "{info:?}");
    let error = open("disk", disk(1 << 20)).err().unwrap();
    assert!(matches!(error, StoreError::BoundTooTight { name: "disk_bytes_max", .. }), "{error}");
    let error = open("memory", memory(1 << 20)).err().unwrap();
    assert!(matches!(error, StoreError::BoundTooTight { name: "memory_bytes_max", .. }), "{error}");
}
