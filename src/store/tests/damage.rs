//! Files that are not as we left them: whatever they hold, the store opens or says why, and serves nothing wrong.

use super::*;

const CAPACITY: u64 = 16;

fn damaged_files(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(".damaged-")).count()
}

#[test]
fn a_flipped_byte_of_a_record_is_a_miss_and_is_counted() {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..4).unwrap();
    // One bit of each byte: opening takes time. The record's own tests flip them all.
    for byte in 0..64_u64 {
        flip(&space_path(folder.path()), layout.record_offset(2) + byte, 1 << (byte * 3 % 8));
        let store = open(folder.path(), CAPACITY);
        let found = served(&store, 0..4, NOW);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 1, 3], "byte {byte}");
        // A changed key is another key, which nobody asks for; everything else is found by asking.
        let quarantined = store.info().quarantined;
        assert!(quarantined == 1 || byte < 32, "byte {byte}");
        put(&store, [2]).unwrap();
        assert_eq!(served(&store, 0..4, NOW).len(), 4, "computed again, byte {byte}");
        assert_eq!(store.info().quarantined, quarantined, "counted once");
        drop(store);
        std::fs::remove_dir_all(folder.path()).unwrap();
        put(&open(folder.path(), CAPACITY), 0..4).unwrap();
    }
}

#[test]
fn a_flipped_row_is_a_miss_is_counted_once_and_is_erased_by_the_next_write() {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..4).unwrap();
    for byte in 0..layout.row_bytes() as u64 {
        flip(&space_path(folder.path()), layout.row_offset(1) + byte, 1 << (byte * 3 % 8));
        let store = open(folder.path(), CAPACITY);
        assert!(store.contains_many(&[key(1)], NOW)[0].is_none());
        assert_eq!(served(&store, 0..4, NOW).into_keys().collect::<Vec<_>>(), [0, 2, 3], "byte {byte}");
        let info = store.info();
        assert_eq!((info.quarantined, info.entries), (1, 4));
        put(&store, [9]).unwrap();
        assert_eq!(store.info().entries, 4, "erased, and one put");
        store.remove_many(&[key(9)]).unwrap();
        put(&store, [1]).unwrap();
        drop(store);
        // It is in the same slot again: the only one that was free below the others.
        assert_eq!(served(&open(folder.path(), CAPACITY), 0..4, NOW).len(), 4);
    }
}

#[test]
fn any_flipped_byte_of_the_header_puts_the_file_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = space_path(folder.path());
    // Every byte of the fields and some of the reserve; the header's own tests flip them all.
    for (flips, offset) in (0..80).chain((80..4096).step_by(251)).chain(4088..4096).enumerate() {
        put(&open(folder.path(), CAPACITY), 0..4).unwrap();
        flip(&path, offset, 0x10);
        let store = open(folder.path(), CAPACITY);
        assert!(served(&store, 0..4, NOW).is_empty(), "byte {offset}");
        assert_eq!(store.info().put_aside.len(), 1);
        assert_eq!(damaged_files(folder.path()), flips + 1);
    }
}

#[test]
fn a_file_cut_short_anywhere_opens_with_what_is_left() {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let rows = layout.rows_offset;
    for len in [0, 1, 4095, 4096, 4097, 4096 + 64 * 3 + 10, rows - 1, rows, rows + 13, rows + 40, layout.file_bytes - 1]
    {
        for capacity in [CAPACITY, 2 * CAPACITY] {
            let folder = tempfile::tempdir().unwrap();
            put(&open(folder.path(), CAPACITY), 0..16).unwrap();
            File::options().write(true).open(space_path(folder.path())).unwrap().set_len(len).unwrap();
            let store = open(folder.path(), capacity);
            let found = served(&store, 0..16, NOW);
            assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)), "length {len}");
            assert_eq!(store.info().put_aside.len(), usize::from(len < 4096), "length {len}");
            put(&store, 0..16).unwrap();
            assert_eq!(served(&store, 0..16, NOW).len(), 16, "it can be filled again, length {len}");
        }
    }
}

#[test]
fn files_of_others_are_refused_by_name_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path(), CAPACITY), 0..4).unwrap();
    let other = folder.path().join(format!("{}.space", file::short_name(&version("other"))));
    std::fs::copy(space_path(folder.path()), &other).unwrap();
    let opened = Store::open(folder.path(), &version("other"), DIMS, &config(CAPACITY));
    assert!(matches!(opened, Err(StoreError::OtherModel { .. })));
    let opened = Store::open(folder.path(), &version("m"), DIMS + 1, &config(CAPACITY));
    assert!(matches!(opened, Err(StoreError::OtherDims { found: DIMS, .. })));

    let path = space_path(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] += 1;
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[..4088]);
    bytes[4088..4096].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let opened = Store::open(folder.path(), &version("m"), DIMS, &config(CAPACITY));
    assert!(matches!(opened, Err(StoreError::NewerFormat { found: 2, supported: 1, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(damaged_files(folder.path()), 0);
}

#[test]
fn a_side_store_that_cannot_be_read_is_put_aside_and_namespaces_get_new_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let unit = row(1, 0);
    let name = |name| Namespace::new(name).unwrap();
    let (first, second) = (name("first"), name("second"));
    open(folder.path(), CAPACITY).put_many(&[NewEntry::new(key(1), &unit, 1.0, &first)], NOW).unwrap();
    std::fs::write(folder.path().join("side.redb"), vec![0x5a; 10_000]).unwrap();
    let store = open(folder.path(), CAPACITY);
    assert_eq!(store.info().put_aside.len(), 1);
    assert_eq!(damaged_files(folder.path()), 1);
    store.put_many(&[NewEntry::new(key(2), &unit, 1.0, &second)], NOW).unwrap();
    let entries = store.contains_many(&[key(1), key(2)], NOW);
    assert_eq!(entries[0].unwrap().namespace, 1);
    assert_eq!(entries[1].unwrap().namespace, 2, "not the number of the namespace whose name is lost");
}

#[test]
fn flipped_bytes_of_the_side_store_never_give_a_wrong_key_and_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("tenant").unwrap();
    let unit = row(1, 0);
    let tags = ["tag".to_owned()];
    let put_all = |store: &Store| {
        let entry = |n| NewEntry {
            token_key: Some(token_key(n)),
            tags: &tags,
            replace: true,
            ..NewEntry::new(key(n), &unit, 1.0, &namespace)
        };
        store.put_many(&[entry(1), entry(2), entry(3)], NOW)
    };
    put_all(&open(folder.path(), CAPACITY)).unwrap();
    let sound = std::fs::read(folder.path().join("side.redb")).unwrap();
    let used: Vec<usize> = (0..sound.len()).filter(|&at| sound[at] != 0).collect();
    for at in used.iter().step_by(used.len() / 150) {
        let mut bytes = sound.clone();
        bytes[*at] ^= 0x21;
        std::fs::write(folder.path().join("side.redb"), bytes).unwrap();
        let store = open(folder.path(), CAPACITY);
        for n in 1..4 {
            let found = store.find_by_tokens(&token_key(n));
            assert!(found.is_none_or(|found| found == key(n)), "byte {at}");
            assert!(store.tags(&key(n)).len() <= 1, "byte {at}");
        }
        assert_eq!(store.contains_many(&[key(1), key(2), key(3)], NOW).iter().flatten().count(), 3, "byte {at}");
        // It may refuse; it may not break.
        let _ = put_all(&store);
        let _ = store.sync();
    }
}
