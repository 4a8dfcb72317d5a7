//! What the fuzz targets share: the store itself, and a folder in memory that is made anew for every input.
//!
//! Each target turns its input into files, opens them, and asserts what `src/store` promises: opening ends in a store or in
//! an error with a name; what is served is right by the checksum, computed here from `FORMAT.md` alone; the store can be
//! written to, and what was written is there when it is opened again.

#![allow(missing_docs, clippy::unwrap_used, reason = "not published; a failure is a panic")]

#[path = "../../../src/domain/mod.rs"]
pub mod domain;
#[path = "../../../src/store/mod.rs"]
pub mod store;
#[path = "../../../src/urgency.rs"]
pub mod urgency;

pub mod format;
pub mod open_side;
pub mod open_space;
pub mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Once;

use half::f16;

use domain::{ContentHash, FingerprintBuilder, Key, ModelVersion, Namespace, Scope, TokenKey};
use domain::{Truncation, TruncationDirection};
use store::{Config, NewEntry, Store, StoreError};

pub const NOW: u32 = 1_800_000_000;

/// The input, read piece by piece; zeros when it is used up.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn word(&mut self) -> u32 {
        u32::from(self.short()) | u32::from(self.short()) << 16
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub fn version() -> ModelVersion {
    FingerprintBuilder::new().field("weights", b"fuzz").finish()
}

fn scope() -> Scope {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    Scope::new(&Namespace::default(), &version(), "", truncation)
}

pub fn key(n: u32) -> Key {
    scope().key(ContentHash::of(&n.to_string()))
}

pub fn token_key(n: u32) -> TokenKey {
    scope().token_key(&[n])
}

/// A row that no other number has.
pub fn row(n: u32, dims: usize) -> Vec<f16> {
    (0..dims as u32).map(|place| f16::from_bits((n.wrapping_mul(7) + place * 31) as u16 & 0x3bff)).collect()
}

/// A folder, emptied; in memory if `scripts/fuzz` has found one there.
pub fn empty_folder() -> PathBuf {
    static PANICS: Once = Once::new();
    // libFuzzer's own hook ends the process at a panic that the store catches: those of redb. What comes through is found
    // all the same.
    PANICS.call_once(|| drop(std::panic::take_hook()));
    let root = std::env::var_os("VECMEMO_FUZZ_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = root.join(format!("vecmemo-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub fn space_path(folder: &Path) -> PathBuf {
    let digits: String = version().as_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{digits}.space"))
}

pub fn config(capacity_entries: u64) -> Config {
    Config { capacity_entries, ..Config::default() }
}

pub fn put(store: &Store, numbers: std::ops::Range<u32>, dims: usize, tags: &[String]) -> Result<(), StoreError> {
    let rows: Vec<_> = numbers.map(|n| (n, row(n, dims))).collect();
    let namespace = Namespace::default();
    let entry = |(n, row)| NewEntry {
        tags,
        token_key: Some(token_key(n)),
        payload: (!tags.is_empty()).then_some("{}"),
        ..NewEntry::new(key(n), row, 1.0, &namespace)
    };
    let entries: Vec<_> = rows.iter().map(|(n, row)| entry((*n, row.as_slice()))).collect();
    store.put_many(&entries, NOW)
}

/// What is served of the keys, by their index.
pub fn served(store: &Store, keys: &[Key]) -> Vec<Option<Vec<f16>>> {
    let mut served = vec![None; keys.len()];
    store.get_many(keys, NOW, |index, _, row| served[index] = Some(row.to_vec())).expect("nobody cuts the file");
    served
}

/// Puts a few entries, which must be served, and still be when the store is opened again.
pub fn write_and_reopen(store: Store, folder: &Path, dims: usize, capacity: u64) {
    let numbers = 900_000..900_003;
    let keys: Vec<Key> = numbers.clone().map(key).collect();
    let expected: Vec<_> = numbers.clone().map(|n| Some(row(n, dims))).collect();
    let info = store.info();
    // Beside many pinned entries there may be less room than for all of them: then a later one takes an earlier one's place.
    let has_room = info.capacity_entries.saturating_sub(info.pinned) >= keys.len() as u64;
    let is_right = |store: &Store| {
        let served = served(store, &keys);
        let right = |(served, expected): (&Option<_>, &Option<_>)| served == expected || !has_room && served.is_none();
        served.iter().zip(&expected).all(right) && served.last() == expected.last()
    };
    match put(&store, numbers, dims, &["new".to_owned()]) {
        Ok(()) => {}
        // Intact entries of the input may be pinned, or have the last numbers there are.
        Err(StoreError::Full { .. } | StoreError::SequenceUsedUp { .. } | StoreError::TooManyNamespaces { .. }) => {
            return;
        }
        Err(error) => panic!("the store cannot be written to: {error:?}"),
    }
    assert!(is_right(&store), "what was just put is served: {:?}", served(&store, &keys));
    drop(store);
    let store = Store::open(folder, &version(), dims, &config(capacity)).expect("it was open a moment ago");
    assert!(is_right(&store), "and after opening again: {:?}", served(&store, &keys));
    assert!(store.info().put_aside.is_empty(), "what the store wrote it can read");
}
