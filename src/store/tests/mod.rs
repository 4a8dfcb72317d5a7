//! The store as its callers see it: against a model, across crashes, under damage, with a failing disk.

mod census;
mod concurrency;
mod condemned;
mod crash;
mod cut;
mod damage;
mod failure;
mod keeping;
mod lifecycle;
mod model;
mod power_loss;
mod quota;
mod simulated_disk;
mod sizes;
mod tools;
mod watch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use half::f16;

use super::disk::{Disk, Opened};
use super::*;
use crate::domain::{ContentHash, FingerprintBuilder, Namespace, Pattern, Scope, Truncation, TruncationDirection};

pub(super) const DIMS: usize = 6;
pub(super) const NOW: u32 = 1_800_000_000;

pub(super) fn version(name: &str) -> ModelVersion {
    FingerprintBuilder::new().field("weights", name.as_bytes()).finish()
}

pub(super) fn key(n: u32) -> Key {
    scope().key(ContentHash::of(&n.to_string()))
}

fn scope() -> Scope {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    Scope::new(&Namespace::default(), &version("m"), "", truncation)
}

pub(super) fn token_key(n: u32) -> TokenKey {
    scope().token_key(&[n])
}

/// A row that no other number and no other edition of it has.
pub(super) fn row(n: u32, edition: u32) -> Vec<f16> {
    let value = |place: u32| f16::from_bits((n.wrapping_mul(7) + edition * 1009 + place * 31) as u16 & 0x3bff);
    (0..DIMS as u32).map(value).collect()
}

pub(super) fn config(capacity_entries: u64) -> Config {
    Config { capacity_entries, ..Config::default() }
}

/// Waits for something that another thread is about to do.
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

pub(super) fn open(folder: &Path, capacity: u64) -> Store {
    Store::open(folder, &version("m"), DIMS, &config(capacity)).unwrap()
}

pub(super) fn space_path(folder: &Path) -> PathBuf {
    folder.join(format!("{}.space", file::short_name(&version("m"))))
}

/// Puts numbers' first editions in one call.
pub(super) fn put(store: &Store, numbers: impl IntoIterator<Item = u32>) -> Result<(), StoreError> {
    let rows: Vec<_> = numbers.into_iter().map(|n| (n, row(n, 0))).collect();
    let namespace = Namespace::default();
    let entries: Vec<_> = rows.iter().map(|(n, row)| NewEntry::new(key(*n), row, *n as f32, &namespace)).collect();
    store.put_many(&entries, NOW)
}

/// What the store serves of the numbers, rows and norms.
pub(super) fn served(
    store: &Store,
    numbers: impl IntoIterator<Item = u32>,
    now: u32,
) -> BTreeMap<u32, (Vec<f16>, f32)> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let keys: Vec<Key> = numbers.iter().map(|&n| key(n)).collect();
    let mut served = BTreeMap::new();
    let shown = store.get_many(&keys, now, |index, entry, row| {
        served.insert(numbers[index], (row.to_vec(), entry.norm));
    });
    shown.unwrap();
    served
}

pub(super) fn is_first_edition(n: u32, (found, norm): &(Vec<f16>, f32)) -> bool {
    *found == row(n, 0) && *norm == n as f32
}

/// What a crash of the process leaves: the files as they are, in a folder that nobody has locked.
pub(super) fn crashed_copy(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for item in std::fs::read_dir(folder).unwrap() {
        let item = item.unwrap();
        std::fs::copy(item.path(), copy.path().join(item.file_name())).unwrap();
    }
    copy
}

pub(super) fn flip(path: &Path, offset: u64, mask: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    FileExt::write_all_at(&file, &[byte[0] ^ mask], offset).unwrap();
}

/// The system's files, with another disk below those that are opened.
pub(super) struct Below<D>(pub(super) D);

impl<D: Fn(File) -> Arc<dyn Disk> + Send + Sync> Files for Below<D> {
    fn open(&self, path: &Path) -> io::Result<Opened> {
        let file = System.open(path)?.file;
        Ok(Opened { disk: (self.0)(file.try_clone()?), file })
    }
}

/// A folder in memory where there is one: syncs cost nothing there.
pub(super) fn quick_folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Whether to take minutes instead of seconds.
pub(super) fn long() -> bool {
    std::env::var_os("VECMEMO_TEST_LONG").is_some_and(|value| value == "1")
}

/// Numbers by chance, the same for the same seed (xorshift64*, Vigna 2016).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Yes, once in so many times.
    pub(super) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}
