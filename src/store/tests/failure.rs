//! A disk that refuses: writes that fail anywhere are errors, failed syncs are latched, and reads go on.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::*;

/// A file whose writes fail after so many more, and whose syncs fail when told to.
struct Failing {
    file: File,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    writes_left: AtomicUsize,
    nothing_written: AtomicBool,
    sync_fails: AtomicBool,
    syncs_tried: AtomicUsize,
}

impl Disk for Failing {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.faults.writes_left.load(SeqCst) == 0 {
            // As a full disk does: some of it is written all the same.
            let written = if self.faults.nothing_written.load(SeqCst) { 0 } else { bytes.len() / 2 };
            FileExt::write_all_at(&self.file, &bytes[..written], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.faults.writes_left.fetch_sub(1, SeqCst);
        FileExt::write_all_at(&self.file, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.syncs_tried.fetch_add(1, SeqCst);
        if self.faults.sync_fails.load(SeqCst) { Err(io::Error::other("medium error")) } else { self.file.sync_data() }
    }
}

fn open_failing(folder: &Path, durability: Durability) -> (Store, Arc<Faults>) {
    let faults = Arc::new(Faults { writes_left: AtomicUsize::new(usize::MAX), ..Faults::default() });
    let shared = Arc::clone(&faults);
    let config = Config { capacity_entries: 16, durability, ..Config::default() };
    let disk = move |file| -> Arc<dyn Disk> { Arc::new(Failing { file, faults: Arc::clone(&shared) }) };
    (Store::open_on(Arc::new(Below(disk)), folder, &version("m"), DIMS, &config).unwrap(), faults)
}

#[test]
fn a_full_disk_is_an_error_and_never_a_wrong_vector() {
    for writes in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let (store, faults) = open_failing(folder.path(), Durability::Process);
        put(&store, 0..10).unwrap();
        faults.writes_left.store(writes, SeqCst);
        // Removing makes holes, so that the put takes several writes.
        let removed = store.remove_many(&[key(2), key(5)]);
        let result = put(&store, 20..30);
        if let Err(error) = removed.and(result) {
            assert!(matches!(error, StoreError::Io { .. }), "{error}");
            assert!(store.info().write_errors > 0);
        }
        let right = |store: &Store| served(store, 0..40, NOW).iter().all(|(n, value)| is_first_edition(*n, value));
        assert!(right(&store), "while the disk is full, {writes}");
        let copy = crashed_copy(folder.path());
        assert!(right(&open(copy.path(), 16)), "after a crash then, {writes}");
        faults.writes_left.store(usize::MAX, SeqCst);
        put(&store, 30..34).unwrap();
        assert_eq!(served(&store, 30..34, NOW).len(), 4, "it goes on when there is room again, {writes}");
        assert!(right(&store));
        drop(store);
        let store = open(folder.path(), 16);
        assert!(right(&store) && store.info().entries <= 16);
        assert_eq!(store.info().quarantined, 0, "failed writes were cleaned up, {writes}");
    }
}

#[test]
fn a_failed_sync_is_latched_and_reads_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (store, faults) = open_failing(folder.path(), Durability::Always);
    put(&store, 0..2).unwrap();
    assert!(store.info().degraded.is_none());
    faults.sync_fails.store(true, SeqCst);
    assert!(matches!(put(&store, 2..4), Err(StoreError::SyncFailed { .. })));
    let tried = faults.syncs_tried.load(SeqCst);
    faults.sync_fails.store(false, SeqCst);
    assert!(matches!(put(&store, 4..6), Err(StoreError::SyncFailed { .. })));
    assert!(matches!(store.sync(), Err(StoreError::SyncFailed { .. })));
    assert_eq!(faults.syncs_tried.load(SeqCst), tried, "not tried again");
    assert_eq!(served(&store, 0..2, NOW).len(), 2);
    assert!(store.info().degraded.unwrap().contains("medium error"));
}

#[test]
fn always_syncs_once_a_put_and_process_never() {
    let folder = tempfile::tempdir().unwrap();
    let (store, faults) = open_failing(folder.path(), Durability::Always);
    put(&store, 0..5).unwrap();
    put(&store, 5..9).unwrap();
    assert_eq!(faults.syncs_tried.load(SeqCst), 2);
    assert_eq!(store.info().syncs, 2);
    drop(store);
    let (store, faults) = open_failing(folder.path(), Durability::Process);
    put(&store, 9..12).unwrap();
    assert_eq!(faults.syncs_tried.load(SeqCst), 0);
    store.sync().unwrap();
    assert_eq!(faults.syncs_tried.load(SeqCst), 1);
}

#[test]
fn an_interval_store_syncs_what_is_left_when_it_closes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, faults) = open_failing(folder.path(), Durability::Interval(std::time::Duration::from_secs(3600)));
    put(&store, 0..5).unwrap();
    assert_eq!(faults.syncs_tried.load(SeqCst), 0);
    drop(store);
    assert_eq!(faults.syncs_tried.load(SeqCst), 1);
}

#[test]
fn of_two_entries_of_one_key_left_by_a_crash_the_newer_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (store, faults) = open_failing(folder.path(), Durability::Process);
    let namespace = Namespace::default();
    faults.nothing_written.store(true, SeqCst);
    // The newer one in a lower slot, then in a higher one: which comes first in the file must not matter.
    put(&store, [5, 1]).unwrap();
    store.remove_many(&[key(5)]).unwrap();
    for edition in [1, 2] {
        let newer = row(1, edition);
        // Row and record get through, the erasure of the older entry does not.
        faults.writes_left.store(2, SeqCst);
        let entry = NewEntry { replace: true, ..NewEntry::new(key(1), &newer, 1.0, &namespace) };
        store.put_many(&[entry], NOW).unwrap_err();
        assert_eq!(served(&store, [1], NOW)[&1].0, newer, "published all the same");
        let copy = crashed_copy(folder.path());
        for _ in 0..2 {
            let store = open(copy.path(), 16);
            assert_eq!(served(&store, [1], NOW)[&1].0, newer);
            assert_eq!((store.info().entries, store.info().quarantined), (1, 0));
            put(&store, [8]).unwrap();
            store.remove_many(&[key(8)]).unwrap();
        }
        faults.writes_left.store(usize::MAX, SeqCst);
        put(&store, [30 + edition]).unwrap();
        store.remove_many(&[key(30 + edition)]).unwrap();
    }
}

/// What cannot be made to last is said, though it is there.
#[test]
fn an_entry_that_cannot_be_synced_is_an_error_for_those_who_want_it_to_last() {
    let folder = tempfile::tempdir().unwrap();
    let (store, faults) = open_failing(folder.path(), Durability::Process);
    faults.sync_fails.store(true, SeqCst);
    let (namespace, rows) = (Namespace::default(), [row(0, 0), row(1, 0)]);
    let entry = |number: u32| NewEntry::new(key(number), &rows[number as usize], number as f32, &namespace);
    store.put_many(&[entry(0)], NOW).unwrap();
    let lasting = NewEntry { durability: Some(Durability::Always), ..entry(1) };
    assert!(matches!(store.put_many(&[lasting], NOW), Err(StoreError::SyncFailed { .. })));
    assert_eq!(served(&store, [0, 1], NOW).len(), 2);
    assert!(store.info().degraded.is_some());
}
