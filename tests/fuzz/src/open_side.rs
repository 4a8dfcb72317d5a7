//! Arbitrary bytes as `side.redb`, beside a space that is whole. The input is the file, or a list of changes to one that
//! redb has written. Rows are right whatever the side store says; a token key leads to its own key or nowhere.

use std::path::Path;
use std::sync::OnceLock;

use crate::domain::Key;
use crate::store::{Selector, Store};
use crate::{Input, config, empty_folder, key, put, row, served, space_path, token_key, version, write_and_reopen};

const DIMS: usize = 4;
const CAPACITY: u64 = 64;
const ENTRIES: u32 = 20;

/// A space with entries, and its side store.
fn base() -> &'static (Vec<u8>, Vec<u8>) {
    static BASE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = empty_folder();
        let store = Store::open(&folder, &version(), DIMS, &config(CAPACITY)).unwrap();
        put(&store, 0..ENTRIES / 2, DIMS, &["red".to_owned(), "green".to_owned()]).unwrap();
        put(&store, ENTRIES / 2..ENTRIES, DIMS, &[]).unwrap();
        store.sync().unwrap();
        drop(store);
        let read = |path: &Path| std::fs::read(path).unwrap();
        (read(&space_path(&folder)), read(&folder.join("side.redb")))
    })
}

pub fn run(input: &[u8]) {
    let (space, side) = base();
    let mut input = Input(input);
    let folder = empty_folder();
    std::fs::write(space_path(&folder), space).unwrap();
    let path = folder.join("side.redb");
    if input.byte() & 1 == 0 {
        std::fs::write(&path, input.0).unwrap();
    } else {
        let mut side = side.clone();
        // Most of the file is empty: changes go where something is.
        let used: Vec<usize> = (0..side.len()).filter(|&place| side[place] != 0).collect();
        while !input.is_empty() {
            let (control, at) = (input.byte(), input.short());
            let place = match control & 7 {
                0 => usize::from(at) * 16,
                1 => usize::from(at) % 512,
                _ => used[(usize::from(at) * 7 + usize::from(control >> 3)) % used.len()],
            } % side.len();
            match control & 3 {
                3 if control >> 6 == 3 => side.truncate(place.max(1)),
                3 => side[place] ^= 1 << (control >> 5),
                _ => side[place] = input.byte(),
            }
        }
        std::fs::write(&path, side).unwrap();
    }

    let Ok(store) = Store::open(&folder, &version(), DIMS, &config(CAPACITY)) else { return };
    let keys: Vec<Key> = (0..ENTRIES).map(key).collect();
    let expected: Vec<_> = (0..ENTRIES).map(|n| Some(row(n, DIMS))).collect();
    assert_eq!(served(&store, &keys), expected, "the rows do not depend on the side store");
    for n in 0..ENTRIES {
        let found = store.find_by_tokens(&token_key(n));
        assert!(found.is_none() || found == Some(key(n)), "a token key leads to another's entry");
        let _ = store.tags(&key(n));
        let _ = store.payload(&key(n));
    }
    for selector in [Selector::All, Selector::Tag("red"), Selector::CreatedBefore(u32::MAX)] {
        if let Ok(found) = store.select(&selector, crate::NOW) {
            assert!(found.iter().all(|found| keys.contains(found)), "an entry that is not there");
        }
    }
    // A damaged side store may refuse to be written to, with an error; it must not take rows with it.
    if put(&store, ENTRIES..ENTRIES + 2, DIMS, &["blue".to_owned()]).is_err() {
        assert_eq!(served(&store, &keys), expected);
        return;
    }
    let _ = store.remove_many(&keys[..3]);
    assert_eq!(served(&store, &keys[..3]), [None, None, None], "removed");
    drop(store);
    // What was found damaged only now is put aside at the next opening at the latest.
    let Ok(store) = Store::open(&folder, &version(), DIMS, &config(CAPACITY)) else { return };
    assert_eq!(served(&store, &keys[3..]), expected[3..]);
    drop(store);
    std::fs::remove_file(&path).unwrap();
    let store = Store::open(&folder, &version(), DIMS, &config(CAPACITY)).expect("without a side store it opens");
    write_and_reopen(store, &folder, DIMS, CAPACITY);
}
