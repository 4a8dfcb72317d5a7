//! The file is cut under the map of an open store: what it held is lost, nothing is wrong, and the store goes on.

use super::*;

const ENTRIES: u32 = 2000;

/// A store full to its capacity, and its file.
fn full(folder: &Path) -> (Store, File) {
    let store = open(folder, u64::from(ENTRIES));
    put(&store, 0..ENTRIES).unwrap();
    let file = File::options().write(true).open(space_path(folder)).unwrap();
    (store, file)
}

/// As `served`, asking again when the file was cut meanwhile.
fn shown(store: &Store, numbers: std::ops::Range<u32>) -> BTreeMap<u32, (Vec<f16>, f32)> {
    let keys: Vec<Key> = numbers.clone().map(key).collect();
    loop {
        let mut shown = BTreeMap::new();
        let whole = store.get_many(&keys, NOW, |index, entry, row| {
            shown.insert(numbers.start + index as u32, (row.to_vec(), entry.norm));
        });
        if whole.is_ok() {
            return shown;
        }
    }
}

fn all_right(store: &Store, numbers: std::ops::Range<u32>) -> usize {
    let served = shown(store, numbers);
    assert!(served.iter().all(|(n, value)| is_first_edition(*n, value)), "a wrong vector");
    served.len()
}

#[test]
fn a_cut_file_costs_what_it_held_and_the_store_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(DIMS, u64::from(ENTRIES)).unwrap();
    for end in [layout.rows_offset + 5000, layout.rows_offset, 70_000, 4096, 100, 0] {
        let folder = folder.path().join(end.to_string());
        let (store, file) = full(&folder);
        assert_eq!(all_right(&store, 0..ENTRIES), ENTRIES as usize);
        file.set_len(end).unwrap();
        let left = all_right(&store, 0..ENTRIES);
        assert!(left < ENTRIES as usize && store.info().lost_pages > 0 && store.info().degraded.is_some());
        // Three times as many as there is room for, one at a time and in hundreds.
        for first in (ENTRIES..4 * ENTRIES).step_by(100) {
            put(&store, first..first + 100).unwrap();
            put(&store, [first + 50]).unwrap();
            if first % 1000 == 0 {
                all_right(&store, 0..first + 100);
            }
        }
        let kept = all_right(&store, 0..4 * ENTRIES);
        assert!(kept > ENTRIES as usize / 2, "{kept} kept after the cut at {end}");
        assert_eq!(store.remove_many(&[key(4 * ENTRIES - 1), key(4 * ENTRIES - 2)]).unwrap(), 2);
        assert!(store.info().entries <= u64::from(ENTRIES));
        store.sync().unwrap();
        drop(store);

        let store = open(&folder, u64::from(ENTRIES));
        let found = all_right(&store, 0..4 * ENTRIES);
        assert!(found >= kept - 2, "{found} after opening again, {kept} before");
        assert!(served(&store, [4 * ENTRIES - 1], NOW).is_empty());
    }
}
