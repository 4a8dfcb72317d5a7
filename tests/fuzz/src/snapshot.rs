//! Changes to the `.table` file that a clean close leaves, its checksums right again in a share of the inputs. Whatever it
//! says, rows are found or missed, never wrong, and the store can be written to.

use std::fs::{File, FileTimes};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::SystemTime;

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::Key;
use crate::store::Store;
use crate::{Input, config, empty_folder, key, put, row, served, space_path, version, write_and_reopen};

const DIMS: usize = 1;
/// As many as it takes for a table to be left at all.
const CAPACITY: u64 = 20_000;
const ENTRIES: u32 = 17_000;
/// Where the head says the body's checksum and its own, which is its last word.
const HEAD_BYTES: usize = 8 * 20;

struct Base {
    space: Vec<u8>,
    modified: SystemTime,
    side: Vec<u8>,
    table: Vec<u8>,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = empty_folder();
        let store = Store::open(&folder, &version(), DIMS, &config(CAPACITY)).unwrap();
        for first in (0..ENTRIES).step_by(1000) {
            put(&store, first..first + 1000, DIMS, &[]).unwrap();
        }
        store.sync().unwrap();
        drop(store);
        let space = space_path(&folder);
        Base {
            modified: std::fs::metadata(&space).unwrap().modified().unwrap(),
            table: std::fs::read(space.with_extension("table")).expect("a clean close leaves the table"),
            space: std::fs::read(&space).unwrap(),
            side: std::fs::read(folder.join("side.redb")).unwrap(),
        }
    })
}

pub fn run(input: &[u8]) {
    let base = base();
    let mut input = Input(input);
    let folder = empty_folder();
    let space = space_path(&folder);
    std::fs::write(&space, &base.space).unwrap();
    std::fs::write(folder.join("side.redb"), &base.side).unwrap();
    let shape = input.byte();
    let table = if shape & 1 == 0 { changed(base.table.clone(), &mut input, shape) } else { input.0.to_vec() };
    std::fs::write(space.with_extension("table"), table).unwrap();
    set_modified(&space, base.modified);

    let Ok(store) = Store::open(&folder, &version(), DIMS, &config(CAPACITY)) else { return };
    let numbers: Vec<u32> = (0..ENTRIES).step_by(13).collect();
    let keys: Vec<Key> = numbers.iter().map(|&n| key(n)).collect();
    for (&n, found) in numbers.iter().zip(served(&store, &keys)) {
        assert!(found.is_none() || found == Some(row(n, DIMS)), "a wrong vector");
    }
    let mut cursor = crate::store::Cursor::default();
    while let Ok(1..) = store.scan(&mut cursor, crate::NOW, 1000, |_, _, _| {}) {}
    let _ = store.info();
    store.scrub(1000);
    let _ = store.remove_many(&keys[..3]);
    assert_eq!(served(&store, &keys[..3]), [None, None, None], "removed");
    // More than there is room for, so that some are evicted.
    let _ = put(&store, 100_000..104_000, DIMS, &[]);
    write_and_reopen(store, &folder, DIMS, CAPACITY);
}

fn set_modified(space: &PathBuf, modified: SystemTime) {
    let file = File::options().write(true).open(space).unwrap();
    file.set_times(FileTimes::new().set_modified(modified)).unwrap();
}

fn changed(mut table: Vec<u8>, input: &mut Input<'_>, shape: u8) -> Vec<u8> {
    while !input.is_empty() {
        let (control, at) = (input.byte(), input.word());
        let place = match control & 3 {
            0 => at as usize % HEAD_BYTES.min(table.len()),
            1 => table.len().saturating_sub(1 + at as usize % 4096),
            _ => at as usize % table.len(),
        };
        match control >> 2 & 3 {
            0 => table[place] = input.byte(),
            1 => table[place] ^= 1 << (control >> 5),
            // Eight bytes at once: a number of the head, or a word of the table.
            2 => {
                let (place, bytes) = (place / 8 * 8, input.array::<8>());
                if let Some(word) = table.get_mut(place..place + 8) {
                    word.copy_from_slice(&bytes);
                }
            }
            _ if control >> 4 == 15 => table.truncate(place.max(1)),
            _ => {}
        }
        if table.len() < 2 {
            return table;
        }
    }
    if shape & 2 == 0 && table.len() > HEAD_BYTES {
        if shape & 4 == 0 {
            let body = xxh3_64(&table[HEAD_BYTES..]);
            table[HEAD_BYTES - 16..HEAD_BYTES - 8].copy_from_slice(&body.to_le_bytes());
        }
        let head = xxh3_64(&table[..HEAD_BYTES - 8]);
        table[HEAD_BYTES - 8..HEAD_BYTES].copy_from_slice(&head.to_le_bytes());
    }
    table
}
