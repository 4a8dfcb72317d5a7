//! What looks at the files from outside: beside a writer, at files that are not whole, and to mend them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::store::layout::Slot;
use crate::store::{self, Attachments, Found, ReadOnly, Scanned};

const CAPACITY: u64 = 64;

/// What a scan shows, in its order, and what it comes to.
fn scan(path: &Path, now: u32) -> (Vec<(Key, Entry, Vec<f16>)>, Scanned) {
    let space = ReadOnly::open(path).unwrap();
    let mut shown = Vec::new();
    let Ok(scanned) = space.scan(&space.survey(), now, |Found { key, entry, row, .. }| {
        shown.push((key, entry, row.to_vec()));
        Ok::<(), std::convert::Infallible>(())
    });
    (shown, scanned)
}

fn verify(folder: &Path) -> store::SpaceReport {
    let mut report = store::verify(folder, None, NOW, |_, _, _| {}).unwrap();
    assert_eq!(report.spaces.len(), 1);
    report.spaces.remove(0)
}

fn repair(folder: &Path) -> store::Repaired {
    store::repair(folder, |_, _, _| {}).unwrap()
}

/// Writes the record and row of one slot to another.
fn copy_slot(path: &Path, from: Slot, to: Slot) {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut record = [0; 64];
    let mut row = vec![0; layout.row_bytes()];
    file.read_exact_at(&mut record, layout.record_offset(from)).unwrap();
    file.read_exact_at(&mut row, layout.row_offset(from)).unwrap();
    FileExt::write_all_at(&file, &record, layout.record_offset(to)).unwrap();
    FileExt::write_all_at(&file, &row, layout.row_offset(to)).unwrap();
}

#[test]
fn a_scan_shows_what_is_served_in_the_order_of_writes_and_says_whose_file_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), CAPACITY);
    put(&store, (0..20).rev()).unwrap();
    store.remove_many(&[key(7)]).unwrap();
    put(&store, [30]).unwrap();
    let (unit, namespace) = (row(40, 0), Namespace::default());
    let expiring = NewEntry { expires: Some(NOW + 5), ..NewEntry::new(key(40), &unit, 40.0, &namespace) };
    store.put_many(&[expiring], NOW).unwrap();

    let path = space_path(folder.path());
    assert_eq!(ReadOnly::spaces(folder.path()).unwrap(), std::slice::from_ref(&path));
    let space = ReadOnly::open(&path).unwrap();
    assert_eq!((space.model(), space.dims(), space.capacity()), (version("m"), DIMS, CAPACITY));
    let (shown, scanned) = scan(&path, NOW);
    let order: Vec<u32> = (0..20).rev().filter(|&n| n != 7).chain([30, 40]).collect();
    assert_eq!(
        shown.iter().map(|(key, ..)| *key).collect::<Vec<_>>(),
        order.iter().map(|&n| key(n)).collect::<Vec<_>>()
    );
    for ((_, entry, found), &n) in shown.iter().zip(&order) {
        assert_eq!((found, entry.norm), (&row(n, 0), n as f32));
    }
    assert_eq!(scanned, Scanned { shown: 21, ..Scanned::default() });
    assert_eq!(scan(&path, NOW + 5).1, Scanned { shown: 20, expired: 1, ..Scanned::default() });
}

#[test]
fn damaged_and_superseded_entries_are_counted_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = space_path(folder.path());
    put(&open(folder.path(), CAPACITY), 0..10).unwrap();
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    flip(&path, layout.row_offset(3) + 1, 2);
    flip(&path, layout.record_offset(5) + 40, 1);
    flip(&path, layout.record_offset(6) + 63, 8);
    copy_slot(&path, 9, 50);
    let (shown, scanned) = scan(&path, NOW);
    assert_eq!(scanned, Scanned { shown: 7, damaged: 3, superseded: 1, ..Scanned::default() });
    let report = verify(folder.path());
    assert_eq!((report.live, report.damaged, report.superseded), (10, 3, 1));
    assert_eq!((report.intact, report.checked, report.free), (8, 10, CAPACITY - 11));
    assert!(!report.is_sound());
    let served = served(&open(folder.path(), CAPACITY), 0..10, NOW);
    assert_eq!(shown.len(), served.len());
}

/// A writer goes round and round in a file with few slots, so that every slot changes all the time: nothing that a scan
/// shows is torn or mixed, and what changes under it is never taken for damage.
#[test]
fn beside_a_writer_every_row_shown_is_one_that_was_put_and_nothing_is_taken_for_damage() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 16);
    put(&store, 0..16).unwrap();
    let path = space_path(folder.path());
    let stop = AtomicBool::new(false);
    let mut total = Scanned::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let namespace = Namespace::default();
            for edition in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let n = edition * 7 % 24;
                let unit = row(n, edition);
                // The norm says which edition it is.
                let entry = NewEntry { replace: true, ..NewEntry::new(key(n), &unit, edition as f32, &namespace) };
                store.put_many(&[entry], NOW).unwrap();
                if edition % 5 == 0 {
                    store.remove_many(&[key(edition % 24)]).unwrap();
                }
            }
        });
        let numbers: BTreeMap<Key, u32> = (0..24).map(|n| (key(n), n)).collect();
        for _ in 0..2000 {
            let (shown, scanned) = scan(&path, NOW);
            assert_eq!(scanned.damaged, 0, "{scanned:?}");
            for (key, entry, found) in &shown {
                let n = numbers[key];
                assert!(*found == row(n, entry.norm as u32) || entry.norm == n as f32 && *found == row(n, 0), "{n}");
            }
            let distinct: BTreeMap<Key, ()> = shown.iter().map(|(key, ..)| (*key, ())).collect();
            assert_eq!(distinct.len(), shown.len(), "each key once");
            total.shown += scanned.shown;
            total.changed += scanned.changed;
        }
        let report = store::verify(folder.path(), None, NOW, |_, _, _| {}).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.side, store::SideReport::InUse);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(total.shown > 0 && total.changed > 0, "the writer was not met: {total:?}");
}

#[test]
fn a_file_cut_short_anywhere_is_read_as_far_as_it_goes() {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let rows = layout.rows_offset;
    for len in
        [0, 1, 4095, 4096, 4097, 4096 + 64 * 3 + 10, 8192, rows - 1, rows, rows + 13, rows + 40, layout.file_bytes - 1]
    {
        let folder = tempfile::tempdir().unwrap();
        put(&open(folder.path(), CAPACITY), 0..CAPACITY as u32).unwrap();
        let path = space_path(folder.path());
        let opened_before = ReadOnly::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        // As if it were cut while it is looked at.
        let survey = opened_before.survey();
        let Ok(scanned) = opened_before.scan(&survey, NOW, |found| {
            assert_eq!(found.row, row(found.entry.norm as u32, 0));
            Ok::<(), std::convert::Infallible>(())
        });
        assert_eq!(survey.free + scanned.shown + scanned.damaged, CAPACITY, "length {len}");
        assert!(scanned.shown < CAPACITY, "length {len}");
        let report = verify(folder.path());
        assert!(!report.is_sound(), "length {len}");
        assert_eq!(report.unreadable.is_some(), len < 4096, "length {len}");

        let repaired = repair(folder.path());
        assert_eq!(repaired.put_aside.len(), usize::from(len < 4096), "length {len}");
        if len < 4096 {
            assert!(store::verify(folder.path(), None, NOW, |_, _, _| {}).unwrap().spaces.is_empty());
        } else {
            assert!(verify(folder.path()).is_sound(), "length {len}");
            let left = served(&open(folder.path(), CAPACITY), 0..CAPACITY as u32, NOW);
            assert!(left.iter().all(|(n, value)| is_first_edition(*n, value)), "length {len}");
            assert_eq!(left.len() as u64, scanned.shown, "length {len}");
        }
    }
}

#[test]
fn files_of_others_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..4).unwrap();
    let path = space_path(folder.path());
    let sound = std::fs::read(&path).unwrap();
    let mut newer = sound.clone();
    newer[8] += 1;
    let checksum = xxhash_rust::xxh3::xxh3_64(&newer[..4088]);
    newer[4088..4096].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, &newer).unwrap();
    assert!(matches!(ReadOnly::open(&path), Err(StoreError::NewerFormat { found: 2, .. })));
    assert!(verify(folder.path()).unreadable.unwrap().contains("format version 2"));
    assert_eq!(repair(folder.path()), store::Repaired::default());
    assert_eq!(std::fs::read(&path).unwrap(), newer, "left alone");
    assert!(matches!(store::compact(folder.path()), Err(StoreError::NewerFormat { .. })));

    std::fs::write(&path, "not a space").unwrap();
    assert!(matches!(ReadOnly::open(&path), Err(StoreError::NotASpace { .. })));
    assert!(matches!(store::compact(folder.path()), Err(StoreError::NotASpace { .. })));
    std::fs::write(&path, &sound).unwrap();
    let other = folder.path().join("0123456789abcdef.space");
    std::fs::rename(&path, &other).unwrap();
    let report = verify(folder.path());
    assert!(report.faults[0].contains("it is the space of model") && !report.is_sound());
}

#[test]
fn a_repair_keeps_the_bytes_of_what_it_erases_and_the_file_is_sound_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = space_path(folder.path());
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    put(&open(folder.path(), CAPACITY), 0..10).unwrap();
    flip(&path, layout.row_offset(3) + 1, 2);
    flip(&path, layout.record_offset(6) + 63, 8);
    let bytes = std::fs::read(&path).unwrap();
    let part = |offset: u64, len: usize| bytes[offset as usize..offset as usize + len].to_vec();

    assert_eq!(verify(folder.path()).damaged, 2);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "looking changes nothing");
    assert_eq!(repair(folder.path()).quarantined, 2);
    let quarantine = std::fs::read(path.with_extension("quarantine")).unwrap();
    let item = |slot: Slot| {
        let head = [u64::from(slot).to_le_bytes(), (layout.row_bytes() as u64).to_le_bytes()].concat();
        [head, part(layout.record_offset(slot), 64), part(layout.row_offset(slot), layout.row_bytes())].concat()
    };
    assert_eq!(quarantine, [item(3), item(6)].concat());

    let report = verify(folder.path());
    assert!(report.is_sound());
    assert_eq!((report.live, report.free), (8, CAPACITY - 8));
    assert_eq!(repair(folder.path()), store::Repaired::default(), "nothing is left to do");
    let store = open(folder.path(), CAPACITY);
    assert_eq!(served(&store, 0..10, NOW).into_keys().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 7, 8, 9]);
    assert_eq!(store.info().quarantined, 0, "the store finds nothing more");
    put(&store, [3, 6]).unwrap();
    assert_eq!(served(&store, 0..10, NOW).len(), 10);

    // A second repair adds to the same file.
    drop(store);
    flip(&path, layout.row_offset(0), 1);
    assert_eq!(repair(folder.path()).quarantined, 1);
    assert_eq!(std::fs::metadata(path.with_extension("quarantine")).unwrap().len(), 3 * quarantine.len() as u64 / 2);
}

/// The table that a clean close leaves names the slots that a repair erases: believed by the next open, it would count
/// and look for entries that are gone.
#[test]
fn a_repair_after_a_clean_close_is_seen_by_the_next_open() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..10).unwrap();
    let path = space_path(folder.path());
    assert!(path.with_extension("table").exists(), "a clean close leaves a table");
    let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
    flip(&path, Layout::new(DIMS, CAPACITY).unwrap().row_offset(4), 1);
    repair(folder.path());
    // Even if the clock stood still.
    File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
    let store = open(folder.path(), CAPACITY);
    assert_eq!(store.info().entries, 9);
    assert_eq!(served(&store, 0..10, NOW).len(), 9);
}

#[test]
fn mending_and_compacting_need_the_folder_for_themselves_and_looking_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), CAPACITY);
    put(&store, 0..4).unwrap();
    let path = folder.path();
    assert!(matches!(store::repair(path, |_, _, _| {}), Err(StoreError::InUse { .. })));
    assert!(matches!(store::compact(path), Err(StoreError::InUse { .. })));
    assert!(matches!(Attachments::open(path, &version("m")), Err(StoreError::InUse { .. })));
    let report = store::verify(path, None, NOW, |_, _, _| {}).unwrap();
    assert!(report.is_sound() && report.side == store::SideReport::InUse);
    drop(store);
    assert_eq!(store::verify(path, None, NOW, |_, _, _| {}).unwrap().side, store::SideReport::Sound);
}

#[test]
fn a_sample_looks_at_as_many_entries_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..40).unwrap();
    let mut told = Vec::new();
    let report = store::verify(folder.path(), Some(10), NOW, |_, done, total| told.push((done, total))).unwrap();
    let space = &report.spaces[0];
    assert_eq!((space.live, space.checked, space.intact), (40, 10, 10));
    assert_eq!(told, [(0, 10), (10, 10)]);
}

#[test]
fn a_side_store_that_is_damaged_is_reported_and_put_aside_by_a_repair() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..4).unwrap();
    let side = folder.path().join("side.redb");
    std::fs::write(&side, vec![0x5a; 10_000]).unwrap();
    let report = store::verify(folder.path(), None, NOW, |_, _, _| {}).unwrap();
    assert!(matches!(report.side, store::SideReport::Damaged(_)) && !report.is_sound());
    assert!(Attachments::open(folder.path(), &version("m")).is_err());
    assert_eq!(repair(folder.path()).put_aside.len(), 1);
    assert!(!side.exists());
    assert!(store::verify(folder.path(), None, NOW, |_, _, _| {}).unwrap().is_sound());
    assert_eq!(served(&open(folder.path(), CAPACITY), 0..4, NOW).len(), 4);
}

fn put_attached(store: &Store) {
    let (unit, namespace) = (row(1, 0), Namespace::new("tenant").unwrap());
    let tags = ["one".to_owned(), "two".to_owned()];
    let entry = NewEntry { tags: &tags, payload: Some("{\"a\":1}"), ..NewEntry::new(key(1), &unit, 1.0, &namespace) };
    store.put_many(&[entry, NewEntry::new(key(2), &unit, 1.0, &namespace)], NOW).unwrap();
}

#[test]
fn names_tags_and_payloads_are_read_after_a_clean_close_and_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), CAPACITY);
    put_attached(&store);
    let crashed = crashed_copy(folder.path());
    drop(store);
    assert_eq!(store::verify(crashed.path(), None, NOW, |_, _, _| {}).unwrap().side, store::SideReport::NotClosed);
    for folder in [folder.path(), crashed.path()] {
        let attachments = Attachments::open(folder, &version("m")).unwrap();
        let (shown, _) = scan(&space_path(folder), NOW);
        let number = shown[0].1.namespace;
        assert_eq!((attachments.namespace(number), attachments.namespace(0)), (Some("tenant"), Some("")));
        assert_eq!(attachments.namespace(99), None);
        assert_eq!(attachments.tags(&key(1)).unwrap(), ["one", "two"]);
        assert_eq!(attachments.payload(&key(1)).unwrap().as_deref(), Some("{\"a\":1}"));
        assert!(attachments.tags(&key(2)).unwrap().is_empty() && attachments.payload(&key(2)).unwrap().is_none());
        assert!(matches!(Store::open(folder, &version("m"), DIMS, &config(CAPACITY)), Err(StoreError::InUse { .. })));
        drop(attachments);
        assert_eq!(open(folder, CAPACITY).tags(&key(1)), ["one", "two"]);
    }
    let bare = tempfile::tempdir().unwrap();
    let attachments = Attachments::open(bare.path(), &version("m")).unwrap();
    assert!(attachments.tags(&key(1)).unwrap().is_empty());
}

#[test]
fn a_scan_tells_which_entries_the_side_store_knows_more_of() {
    let folder = tempfile::tempdir().unwrap();
    put_attached(&open(folder.path(), CAPACITY));
    let space = ReadOnly::open(&space_path(folder.path())).unwrap();
    let mut told = Vec::new();
    let Ok(_) = space.scan(&space.survey(), NOW, |found| {
        told.push((found.tagged, found.has_payload));
        Ok::<(), std::convert::Infallible>(())
    });
    assert_eq!(told, [(true, true), (false, false)]);
}

#[test]
fn compacting_gives_back_holes_and_keeps_every_entry_its_order_and_what_belongs_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 16);
    put(&store, 0..40_000).unwrap();
    let gone: Vec<Key> = (0..40_000).filter(|n| n % 100 != 0).map(key).collect();
    store.remove_many(&gone).unwrap();
    put_attached(&store);
    store.sync().unwrap();
    drop(store);
    let before = scan(&space_path(folder.path()), NOW).0;
    flip(&space_path(folder.path()), Layout::new(DIMS, 1 << 16).unwrap().row_offset(0), 1);
    let compacted = store::compact(folder.path()).unwrap();
    let space = &compacted.spaces[0];
    assert_eq!((space.entries, space.damaged), (401, 1));
    assert!(space.bytes_after * 20 < space.bytes_before, "{space:?}");
    assert!(compacted.side_bytes_after <= compacted.side_bytes_before);
    let after = scan(&space_path(folder.path()), NOW).0;
    assert!(after == before[1..], "the first was damaged");
    let store = open(folder.path(), 1 << 16);
    assert_eq!(store.info().entries, 401);
    assert_eq!(store.tags(&key(1)), ["one", "two"]);
    put(&store, [7]).unwrap();
    assert_eq!(scan(&space_path(folder.path()), NOW).0.last().unwrap().0, key(7), "the sequence goes on");
}
