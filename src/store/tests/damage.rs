//! Files that are not as we left them: whatever they hold, the store opens or says why, and serves nothing wrong.

use std::time::SystemTime;

use super::*;
use crate::store::Attachments;

const CAPACITY: u64 = 16;

fn damaged_files(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(".damaged-")).count()
}

/// A folder after a clean close, to be made again and again with other damage.
struct Closed {
    /// Name, bytes up to the last that is not zero, whole length, time of change.
    files: Vec<(String, Vec<u8>, u64, SystemTime)>,
}

impl Closed {
    /// With so many entries of the usual kind, in slots of the same numbers.
    fn with_entries(entries: u32) -> Self {
        let folder = quick_folder();
        put(&open(folder.path(), CAPACITY), 0..entries).unwrap();
        Self::of(folder.path())
    }

    fn of(folder: &Path) -> Self {
        let files = std::fs::read_dir(folder).unwrap().map(|item| {
            let path = item.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let len = bytes.len() as u64;
            bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            (path.file_name().unwrap().to_string_lossy().into_owned(), bytes, len, modified)
        });
        Self { files: files.collect() }
    }

    /// Makes the folder, lets `damage` do its work on the file whose name ends so, and gives it back its time of change.
    fn damaged(&self, ending: &str, damage: impl FnOnce(&File, u64)) -> tempfile::TempDir {
        let folder = quick_folder();
        let mut damage = Some(damage);
        for (name, bytes, len, modified) in &self.files {
            let file = File::options().read(true).write(true).create_new(true).open(folder.path().join(name)).unwrap();
            // Zeros are left out: most of the file is holes, as it was.
            for (page, bytes) in bytes.chunks(4096).enumerate().filter(|(_, bytes)| bytes.iter().any(|&b| b != 0)) {
                FileExt::write_all_at(&file, bytes, page as u64 * 4096).unwrap();
            }
            file.set_len(*len).unwrap();
            if name.ends_with(ending) {
                (damage.take().unwrap())(&file, *len);
            }
            file.set_modified(*modified).unwrap();
        }
        assert!(damage.is_none(), "there is a file {ending}");
        folder
    }

    fn flipped(&self, ending: &str, bit: u64) -> tempfile::TempDir {
        self.damaged(ending, |file, _| flip_bit(file, bit))
    }

    /// Without the table, as after a crash.
    fn crashed(mut self) -> Self {
        self.files.retain(|(name, ..)| !name.ends_with(".table"));
        self
    }

    fn len_of(&self, ending: &str) -> u64 {
        self.files.iter().find(|(name, ..)| name.ends_with(ending)).unwrap().2
    }
}

fn flip_bit(file: &File, bit: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    FileExt::write_all_at(file, &[byte[0] ^ 1 << (bit % 8)], bit / 8).unwrap();
}

/// Entry 2 of four is damaged: it is not served, is counted once, and can be put again; the others are served.
fn check_one_is_damaged(folder: &Path, clean: bool, what: &str) {
    let store = open(folder, CAPACITY);
    assert_eq!(store.info().opened_clean, clean, "{what}");
    for _ in 0..2 {
        let found = served(&store, 0..4, NOW);
        assert!(found.keys().copied().eq([0, 1, 3]), "{what}: {:?}", found.keys());
        assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)), "{what}");
        assert!(store.contains_many(&[key(2)], NOW)[0].is_none(), "{what}");
    }
    // A changed key is another key, which nobody asks for; the scrubber finds it all the same.
    while !store.scrub(3).finished {}
    assert_eq!(store.info().quarantined, 1, "{what}");
    put(&store, [2]).unwrap();
    assert_eq!(served(&store, 0..4, NOW).len(), 4, "computed again, {what}");
    let info = store.info();
    assert_eq!((info.quarantined, info.entries), (1, 4), "counted once, and erased, {what}");
}

#[test]
fn any_flipped_bit_of_a_record_or_a_row_is_a_miss_and_is_counted_once() {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let mut flips = 0;
    for (clean, closed) in [(true, Closed::with_entries(4)), (false, Closed::with_entries(4).crashed())] {
        let bits = |offset: u64, bytes: u64| offset * 8..(offset + bytes) * 8;
        for bit in bits(layout.record_offset(2), 64).chain(bits(layout.row_offset(2), layout.row_bytes() as u64)) {
            let folder = closed.flipped(".space", bit);
            check_one_is_damaged(folder.path(), clean, &format!("bit {bit}, clean: {clean}"));
            flips += 1;
        }
    }
    assert_eq!(flips, 2 * 8 * (64 + 2 * DIMS));
}

#[test]
fn rows_and_records_with_many_flips_are_misses() {
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let closed = Closed::with_entries(4);
    let mut random = Random::new(5);
    for round in 0..if long() { 20_000 } else { 300 } {
        let mut touched = false;
        let folder = closed.damaged(".space", |file, _| {
            for _ in 0..2 + random.below(30) {
                let (offset, bytes) = match random.below(3) {
                    0 => (layout.record_offset(2), 64),
                    _ => (layout.row_offset(2), layout.row_bytes()),
                };
                flip_bit(file, offset * 8 + random.below(bytes * 8) as u64);
            }
            let mut bytes = vec![0; layout.row_bytes()];
            file.read_exact_at(&mut bytes, layout.row_offset(2)).unwrap();
            touched = bytes != bytemuck::cast_slice::<f16, u8>(&row(2, 0));
        });
        let store = open(folder.path(), CAPACITY);
        let found = served(&store, 0..4, NOW);
        assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)), "round {round}");
        assert!(found.len() >= 3 && (!touched || found.len() == 3), "round {round}");
    }
}

#[test]
fn any_flipped_bit_of_the_header_puts_the_file_aside() {
    let closed = Closed::with_entries(4);
    // Every bit of the fields and the checksum, and some of the reserve; the header's own tests flip every byte.
    let reserve = (72..4088).step_by(if long() { 1 } else { 83 }).map(|byte| byte * 8 + byte % 8);
    for bit in (0..72 * 8).chain(reserve).chain(4088 * 8..4096 * 8) {
        let folder = closed.flipped(".space", bit);
        let store = open(folder.path(), CAPACITY);
        assert!(served(&store, 0..4, NOW).is_empty(), "bit {bit}");
        let info = store.info();
        assert_eq!((info.put_aside.len(), info.entries, info.opened_clean), (1, 0, false), "bit {bit}");
        assert_eq!(damaged_files(folder.path()), 1);
        put(&store, 0..2).unwrap();
        assert_eq!(served(&store, 0..4, NOW).len(), 2);
    }
}

#[test]
fn a_file_cut_at_any_page_opens_with_what_is_left() {
    const DIMS: usize = 1024;
    let version = version("m");
    let row = |n: u32| vec![f16::from_f32(0.001 * n as f32); DIMS];
    let namespace = Namespace::default();
    let folder = quick_folder();
    let rows: Vec<_> = (0..16).map(row).collect();
    let entries: Vec<_> = (0..).zip(&rows).map(|(n, row)| NewEntry::new(key(n), row, n as f32, &namespace)).collect();
    Store::open(folder.path(), &version, DIMS, &config(CAPACITY)).unwrap().put_many(&entries, NOW).unwrap();
    let layout = Layout::new(DIMS, CAPACITY).unwrap();
    let closed = Closed::of(folder.path());
    let mut left = 0;
    for len in (0..layout.file_bytes).step_by(4096) {
        let folder = closed.damaged(".space", |file, _| file.set_len(len).unwrap());
        let store = Store::open(folder.path(), &version, DIMS, &config(CAPACITY)).unwrap();
        let found = served(&store, 0..16, NOW);
        assert!(found.iter().all(|(n, (found, norm))| *found == rows[*n as usize] && *norm == *n as f32), "{len}");
        let info = store.info();
        assert!(!info.opened_clean && info.put_aside.len() == usize::from(len == 0), "length {len}: {info:?}");
        // Records without a row are counted when they are asked for; what has no record is not known of.
        let rows_left = len.saturating_sub(layout.rows_offset) / layout.row_bytes() as u64;
        let records_left = if len > layout.slots_offset { 16 } else { 0 };
        // Row 0 is zero, as a hole is.
        let expected = if records_left > 0 { rows_left.max(1) } else { 0 };
        assert_eq!((found.len() as u64, info.quarantined), (expected, records_left - expected), "length {len}");
        left += found.len();
        store.put_many(&entries, NOW).unwrap();
        assert_eq!(served(&store, 0..16, NOW).len(), 16, "it can be filled again, length {len}");
    }
    assert!(left > 16);
}

#[test]
fn a_table_of_a_clean_close_with_a_flipped_bit_or_cut_short_is_not_believed() {
    let closed = Closed::with_entries(4);
    let undamaged = closed.damaged(".table", |_, _| {});
    assert!(open(undamaged.path(), CAPACITY).info().opened_clean, "or the test shows nothing");
    let len = closed.len_of(".table");
    let check = |folder: tempfile::TempDir, what: String| {
        let store = open(folder.path(), CAPACITY);
        let found = served(&store, 0..4, NOW);
        assert!(found.len() == 4 && found.iter().all(|(n, value)| is_first_edition(*n, value)), "{what}");
        let info = store.info();
        assert_eq!((info.opened_clean, info.quarantined, info.entries), (false, 0, 4), "{what}");
        put(&store, 4..6).unwrap();
        assert_eq!(served(&store, 0..6, NOW).len(), 6, "{what}");
    };
    for byte in 0..len {
        for bit in if long() { 0..8 } else { byte * 5 % 8..byte * 5 % 8 + 1 } {
            check(closed.flipped(".table", byte * 8 + bit), format!("bit {bit} of byte {byte}"));
        }
    }
    for shorter in (0..len).step_by(8) {
        check(closed.damaged(".table", |file, _| file.set_len(shorter).unwrap()), format!("cut at {shorter}"));
    }
}

/// Put back by hand, or by a backup that keeps the time of change: even then, nothing wrong is served.
#[test]
fn a_table_of_another_state_is_not_believed_or_does_no_harm() {
    let earlier = Closed::with_entries(4);
    let put_table = |closed: &Closed, file: &File| {
        let (_, bytes, len, _) = closed.files.iter().find(|(name, ..)| name.ends_with(".table")).unwrap();
        file.set_len(0).unwrap();
        FileExt::write_all_at(file, bytes, 0).unwrap();
        file.set_len(*len).unwrap();
    };
    let folder = earlier.damaged(".table", |_, _| {});
    let store = open(folder.path(), CAPACITY);
    store.remove_many(&[key(0), key(1)]).unwrap();
    put(&store, 10..14).unwrap();
    drop(store);
    let later = Closed::of(folder.path());
    let right = |store: &Store| served(store, 0..16, NOW).iter().all(|(n, value)| is_first_edition(*n, value));
    let back = |file: &File, _: u64| put_table(&earlier, file);
    let store_folder = later.damaged(".table", back);
    let store = open(store_folder.path(), CAPACITY);
    assert!(!store.info().opened_clean, "the space has another time of change");
    assert!(right(&store) && served(&store, 0..16, NOW).len() == 6);
    drop(store);

    // With the former time of change too.
    let (space, former) = (space_path(Path::new("")), &earlier.files);
    let time = former.iter().find(|(name, ..)| Path::new(name) == space).unwrap().3;
    let store_folder = later.damaged(".table", back);
    File::options().write(true).open(store_folder.path().join(&space)).unwrap().set_modified(time).unwrap();
    let store = open(store_folder.path(), CAPACITY);
    assert!(store.info().opened_clean, "nothing tells them apart");
    assert!(right(&store));
    for n in 0..40 {
        put(&store, [n]).unwrap();
        assert!(right(&store), "after {n}");
    }
    drop(store);
    let store = open(store_folder.path(), CAPACITY);
    assert!(right(&store));

    // Of another model, length or capacity.
    for (model, dims, capacity) in [("other", DIMS, CAPACITY), ("m", DIMS - 1, CAPACITY), ("m", DIMS, CAPACITY + 1)] {
        let folder = quick_folder();
        let store = Store::open(folder.path(), &version(model), dims, &config(capacity)).unwrap();
        let (unit, namespace) = (row(1, 0), Namespace::default());
        store.put_many(&[NewEntry::new(key(1), &unit[..dims], 1.0, &namespace)], NOW).unwrap();
        drop(store);
        let other = Closed::of(folder.path());
        let folder = earlier.damaged(".table", |file, _| put_table(&other, file));
        let store = open(folder.path(), CAPACITY);
        assert!(!store.info().opened_clean && served(&store, 0..4, NOW).len() == 4, "{model} {dims} {capacity}");
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
fn a_payload_and_a_tag_that_are_no_text_are_taken_as_none_and_do_not_panic() {
    let folder = quick_folder();
    let unit = row(1, 0);
    let (payload, tag) = ("a payload that is long enough to be found", "a-tag-that-is-long-enough-to-be-found");
    let tags = [tag.to_owned()];
    let namespace = Namespace::default();
    let entry = NewEntry { payload: Some(payload), tags: &tags, ..NewEntry::new(key(1), &unit, 1.0, &namespace) };
    open(folder.path(), CAPACITY).put_many(&[entry, NewEntry::new(key(2), &unit, 1.0, &namespace)], NOW).unwrap();
    let path = folder.path().join("side.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    for text in [payload, tag] {
        let places = (0..bytes.len() - text.len()).filter(|&at| bytes[at..].starts_with(text.as_bytes()));
        let places: Vec<usize> = places.collect();
        assert!(!places.is_empty());
        places.iter().for_each(|&at| bytes[at] = 0xBC);
    }
    std::fs::write(&path, bytes).unwrap();

    let attachments = Attachments::open(folder.path(), &version("m")).unwrap();
    assert!(attachments.payload(&key(1)).is_err() && attachments.tags(&key(1)).is_err());
    drop(attachments);
    let store = open(folder.path(), CAPACITY);
    assert_eq!((store.payload(&key(1)), store.tags(&key(1))), (None, Vec::new()));
    assert_eq!(store.contains_many(&[key(1), key(2)], NOW).iter().flatten().count(), 2);
    let again = NewEntry { payload: Some("other"), replace: true, ..NewEntry::new(key(2), &unit, 1.0, &namespace) };
    store.put_many(&[again], NOW).unwrap();
    assert_eq!(store.payload(&key(2)).as_deref(), Some("other"));
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
