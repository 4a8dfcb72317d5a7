//! Opening, closing, replacing, expiring, evicting, resizing; namespaces, tags and token keys.

use super::*;

#[test]
fn what_is_put_is_served_bit_for_bit_and_after_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("tenant").unwrap();
    let unit = row(1, 0);
    let entry = NewEntry {
        tokens: 70_000,
        truncated: true,
        expires: Some(NOW + 10),
        copied: true,
        ..NewEntry::new(key(1), &unit, 2.5, &namespace)
    };
    let expected = Entry {
        norm: 2.5,
        tokens: 65_535,
        truncated: true,
        created: NOW,
        expires: Some(NOW + 10),
        pinned: false,
        refresh_ahead: false,
        stale: false,
        copied: true,
        sequence: 1,
        namespace: 1,
    };
    let store = open(folder.path(), 8);
    store.put_many(&[entry], NOW).unwrap();
    assert_eq!(store.contains_many(&[key(2), key(1)], NOW), [None, Some(expected)]);
    drop(store);
    let store = open(folder.path(), 8);
    assert_eq!(store.contains_many(&[key(1)], NOW), [Some(expected)]);
    assert_eq!(served(&store, [1], NOW)[&1].0, unit);
    assert_eq!(store.contains_many(&[key(1)], NOW + 10), [None], "expired");
}

#[test]
fn a_value_stays_unless_it_is_to_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 8);
    let namespace = Namespace::default();
    let rows: Vec<_> = (0..4).map(|edition| row(1, edition)).collect();
    let edition =
        |edition: usize, replace| NewEntry { replace, ..NewEntry::new(key(1), &rows[edition], 1.0, &namespace) };
    store.put_many(&[edition(0, false), edition(1, false)], NOW).unwrap();
    assert_eq!(served(&store, [1], NOW)[&1].0, rows[0], "of a key given twice, the first");
    store.put_many(&[edition(1, false)], NOW).unwrap();
    assert_eq!(served(&store, [1], NOW)[&1].0, rows[0], "a valid entry stays");
    store.put_many(&[edition(2, true), edition(3, true)], NOW).unwrap();
    assert_eq!(served(&store, [1], NOW)[&1].0, rows[3], "replaced, by the last");
    assert_eq!(store.info().entries, 1);
    drop(store);
    assert_eq!(served(&open(folder.path(), 8), [1], NOW)[&1].0, rows[3]);
}

#[test]
fn bad_rows_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 8);
    let namespace = Namespace::default();
    let (good, mut bad) = (row(1, 0), row(2, 0));
    bad[3] = f16::NAN;
    let first = NewEntry::new(key(1), &good, 1.0, &namespace);
    let refused = |second| store.put_many(&[first, second], NOW).unwrap_err();
    assert!(matches!(
        refused(NewEntry::new(key(2), &good[1..], 1.0, &namespace)),
        StoreError::RowLength { index: 1, found: 5, expected: DIMS }
    ));
    assert!(matches!(refused(NewEntry::new(key(2), &bad, 1.0, &namespace)), StoreError::NotFinite { index: 1 }));
    let endless = NewEntry::new(key(2), &good, f32::INFINITY, &namespace);
    assert!(matches!(refused(endless), StoreError::NotFinite { index: 1 }));
    assert_eq!(store.info().entries, 0);
}

#[test]
fn a_removed_entry_is_gone_from_memory_and_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 8);
    put(&store, 0..5).unwrap();
    assert_eq!(store.remove_many(&[key(1), key(7), key(3), key(1)]).unwrap(), 2);
    assert_eq!(served(&store, 0..5, NOW).into_keys().collect::<Vec<_>>(), [0, 2, 4]);
    drop(store);
    assert_eq!(served(&open(folder.path(), 8), 0..5, NOW).into_keys().collect::<Vec<_>>(), [0, 2, 4]);
}

#[test]
fn eviction_keeps_the_capacity_and_spares_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 64);
    put(&store, 0..64).unwrap();
    for n in 64..500 {
        assert_eq!(served(&store, [0, 1], NOW).len(), 2, "entries read all the time stay, at {n}");
        put(&store, [n]).unwrap();
        assert!(store.info().entries <= 64);
    }
    assert!(served(&store, [499], NOW).contains_key(&499), "what was put last is there");
    let info = store.info();
    assert_eq!(info.entries + info.evicted, 500);
    let one_call = 1000..1300;
    put(&store, one_call.clone()).unwrap();
    assert_eq!(served(&store, one_call, NOW).len(), 64, "more than fit: as many as fit stay");
}

#[test]
fn expired_entries_make_room_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 16);
    put(&store, 0..12).unwrap();
    let namespace = Namespace::default();
    let rows: Vec<_> = (12..16).map(|n| (n, row(n, 0))).collect();
    let expires = Some(NOW + 1);
    let entries: Vec<_> =
        rows.iter().map(|(n, row)| NewEntry { expires, ..NewEntry::new(key(*n), row, 1.0, &namespace) }).collect();
    store.put_many(&entries, NOW).unwrap();
    let unit = row(20, 0);
    store.put_many(&[NewEntry::new(key(20), &unit, 1.0, &namespace)], NOW + 1).unwrap();
    assert_eq!(served(&store, 0..12, NOW + 1).len(), 12);
    let info = store.info();
    assert_eq!((info.expired, info.evicted, info.entries), (4, 0, 13));
}

#[test]
fn another_capacity_moves_the_entries_the_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let check = |capacity, expected: std::ops::Range<u32>| {
        let store = open(folder.path(), capacity);
        let found = served(&store, 0..40, NOW);
        assert!(found.keys().copied().eq(expected.clone()), "{capacity}: {:?}", found.keys());
        assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)));
        assert_eq!(store.info().capacity_entries, capacity);
    };
    put(&open(folder.path(), 64), 0..40).unwrap();
    check(64, 0..40);
    check(50_000, 0..40);
    check(10, 30..40);
    check(64, 30..40);
    assert!(!space_path(folder.path()).with_extension("space.new").exists());
}

#[test]
fn a_second_store_in_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), 8);
    let second = Store::open(folder.path(), &version("other"), DIMS, &config(8));
    assert!(matches!(second, Err(StoreError::InUse { .. })));
    drop(first);
    open(folder.path(), 8);
}

#[test]
fn models_do_not_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), 8), 0..3).unwrap();
    let other = Store::open(folder.path(), &version("other"), 4, &config(8)).unwrap();
    assert_eq!(other.contains_many(&[key(1)], NOW), [None]);
    drop(other);
    assert_eq!(served(&open(folder.path(), 8), 0..3, NOW).len(), 3);
}

#[test]
fn models_of_a_held_folder_are_open_at_once_each_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let held = Folder::hold(folder.path()).unwrap();
    let stores = ["m", "other"].map(|name| held.open(&version(name), DIMS, &config(8)).unwrap());
    let again = held.open(&version("m"), DIMS, &config(8));
    assert!(matches!(again, Err(StoreError::InUse { .. })));
    let namespaces: Vec<Namespace> = ["a", "b"].map(|name| Namespace::new(name).unwrap()).into();
    let tags = ["t".to_owned()];
    let unit = row(0, 0);
    for (n, (store, namespace)) in (0..).zip(stores.iter().zip(&namespaces)) {
        store.put_many(&[NewEntry { tags: &tags, ..NewEntry::new(key(n), &unit, 1.0, namespace) }], NOW).unwrap();
    }
    for (n, store) in (0..).zip(&stores) {
        assert_eq!(store.select(&Selector::Tag("t"), NOW).unwrap(), [key(n)]);
        assert_eq!(store.namespace_name(1).unwrap(), ["a", "b"][n as usize]);
    }
    drop(held);
    assert!(matches!(Store::open(folder.path(), &version("m"), DIMS, &config(8)), Err(StoreError::InUse { .. })));
    drop(stores);
    // What was written together is what each finds alone.
    assert_eq!(open(folder.path(), 8).select(&Selector::Tag("t"), NOW).unwrap(), [key(0)]);
}

#[test]
fn a_deleted_model_leaves_nothing_and_the_others_everything() {
    let folder = tempfile::tempdir().unwrap();
    let held = Folder::hold(folder.path()).unwrap();
    let [kept, gone] = ["m", "other"].map(|name| held.open(&version(name), DIMS, &config(8)).unwrap());
    put(&kept, 0..3).unwrap();
    put(&gone, 0..3).unwrap();
    assert!(matches!(held.delete(&version("other")), Err(StoreError::InUse { .. })));
    drop(gone);
    assert!(held.delete(&version("other")).unwrap() > 0);
    assert_eq!(ReadOnly::spaces(folder.path()).unwrap().len(), 1);
    assert_eq!(served(&kept, 0..3, NOW).len(), 3);
    assert_eq!(held.delete(&version("other")).unwrap(), 0);
    let again = held.open(&version("other"), DIMS, &config(8)).unwrap();
    assert_eq!(again.info().entries, 0);
}

#[test]
fn namespaces_keep_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<Namespace> = ["", "b", "a"].map(|name| Namespace::new(name).unwrap()).into();
    let unit = row(0, 0);
    let numbers = |store: &Store| -> Vec<u32> {
        store.contains_many(&[key(0), key(1), key(2)], NOW).into_iter().map(|entry| entry.unwrap().namespace).collect()
    };
    let store = open(folder.path(), 8);
    for (n, namespace) in (0..).zip(&names) {
        store.put_many(&[NewEntry::new(key(n), &unit, 1.0, namespace)], NOW).unwrap();
    }
    assert_eq!(numbers(&store), [0, 1, 2]);
    drop(store);
    let store = open(folder.path(), 8);
    store.put_many(&[NewEntry { replace: true, ..NewEntry::new(key(0), &unit, 1.0, &names[1]) }], NOW).unwrap();
    assert_eq!(numbers(&store), [1, 1, 2]);
}

#[test]
fn tags_add_up_and_go_with_their_entry() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::default();
    let unit = row(0, 0);
    let tags = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let put_tagged = |store: &Store, names: &[&str], replace| {
        let tags = tags(names);
        store
            .put_many(&[NewEntry { tags: &tags, replace, ..NewEntry::new(key(0), &unit, 1.0, &namespace) }], NOW)
            .unwrap();
    };
    let store = open(folder.path(), 8);
    put_tagged(&store, &[], false);
    assert!(store.tags(&key(0)).is_empty());
    put_tagged(&store, &["b"], false);
    put_tagged(&store, &["a", "b"], false);
    put_tagged(&store, &[], true);
    assert_eq!(store.tags(&key(0)), tags(&["a", "b"]));
    drop(store);
    let store = open(folder.path(), 8);
    assert_eq!(store.tags(&key(0)), tags(&["a", "b"]));
    store.remove_many(&[key(0)]).unwrap();
    assert!(store.tags(&key(0)).is_empty());
    put_tagged(&store, &["c"], false);
    store.sync().unwrap();
    assert!(store.tags(&key(0)).contains(&"c".to_owned()), "put again before the removal was written");
    store.remove_many(&[key(0)]).unwrap();
    store.sync().unwrap();
    put_tagged(&store, &["d"], false);
    assert_eq!(store.tags(&key(0)), tags(&["d"]), "after it was written");
}

#[test]
fn token_keys_are_found_at_once_and_after_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::default();
    let unit = row(0, 0);
    let store = open(folder.path(), 8);
    let entry = NewEntry { token_key: Some(token_key(1)), ..NewEntry::new(key(0), &unit, 1.0, &namespace) };
    store.put_many(&[entry], NOW).unwrap();
    assert_eq!(store.find_by_tokens(&token_key(1)), Some(key(0)));
    assert_eq!(store.find_by_tokens(&token_key(2)), None);
    store.sync().unwrap();
    assert_eq!(store.info().token_keys_pending, 0);
    assert_eq!(store.find_by_tokens(&token_key(1)), Some(key(0)));
    drop(store);
    assert_eq!(open(folder.path(), 8).find_by_tokens(&token_key(1)), Some(key(0)));
}

#[test]
fn token_keys_of_entries_that_are_gone_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::default();
    let store = open(folder.path(), 8);
    for first in (0..4000).step_by(500) {
        let rows: Vec<_> = (first..first + 500).map(|n| (n, row(n, 0))).collect();
        let entries: Vec<_> = rows
            .iter()
            .map(|(n, row)| NewEntry { token_key: Some(token_key(*n)), ..NewEntry::new(key(*n), row, 1.0, &namespace) })
            .collect();
        store.put_many(&entries, NOW).unwrap();
        store.sync().unwrap();
    }
    let known = (0..4000).filter(|&n| store.find_by_tokens(&token_key(n)).is_some()).count();
    assert!(known <= 2 * 8 + 1024 + 500, "{known}");
    let live = served(&store, 0..4000, NOW);
    assert!(live.keys().all(|&n| store.find_by_tokens(&token_key(n)) == Some(key(n))), "those that are there stay");
}
