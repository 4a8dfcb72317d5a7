//! How long does the store take? One key and batches of 32, hits and misses, and writes; Throughput counts entries.
//!
//! 100,000 entries of 384 dims, keys visited in random order, so that most rows come from memory and not from a cache.

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use vecmemo::domain::{ContentHash, FingerprintBuilder, Key, Namespace, Scope, Truncation, TruncationDirection};
use vecmemo::store::{Config, Durability, NewEntry, Store};

const DIMS: usize = 384;
const ENTRIES: usize = 100_000;
const BATCH: usize = 32;
const NOW: u32 = 1_800_000_000;

fn keys(what: &str, count: usize) -> Vec<Key> {
    let model = FingerprintBuilder::new().finish();
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    let scope = Scope::new(&Namespace::default(), &model, "", truncation);
    // Hashes of consecutive numbers: in the order of a random permutation with regard to any table.
    (0..count).map(|n| scope.key(ContentHash::of(&format!("{what} {n}")))).collect()
}

fn put(store: &Store, keys: &[Key], unit: &[f16]) {
    let namespace = Namespace::default();
    let entries: Vec<_> = keys.iter().map(|&key| NewEntry::new(key, unit, 1.0, &namespace)).collect();
    store.put_many(&entries, NOW).expect("the bench's disk has room");
}

fn open(folder: &std::path::Path, capacity: usize, durability: Durability) -> Store {
    let config = Config { capacity_entries: capacity as u64, durability };
    Store::open(folder, &FingerprintBuilder::new().finish(), DIMS, &config).expect("a fresh folder opens")
}

/// Reads a row as an answer would: all of it.
fn sum(store: &Store, keys: &[Key]) -> u32 {
    let mut sum = 0_u32;
    store.get_many(keys, NOW, |_, entry, row| {
        sum = row.iter().fold(sum, |sum, value| sum.wrapping_add(u32::from(value.to_bits())));
        sum = sum.wrapping_add(entry.tokens);
    });
    sum
}

fn get(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let store = open(folder.path(), ENTRIES, Durability::Process);
    let unit = vec![f16::from_f32(0.05); DIMS];
    let mut present = keys("present", ENTRIES);
    present.chunks(4096).for_each(|chunk| put(&store, chunk, &unit));
    // Not in the order of the slots.
    present.sort_unstable();
    let absent = keys("absent", ENTRIES);

    let mut group = criterion.benchmark_group("store_get");
    for (name, keys, batch) in
        [("hit", &present, 1), ("miss", &absent, 1), ("hit", &present, BATCH), ("miss", &absent, BATCH)]
    {
        group.throughput(Throughput::Elements(batch as u64));
        let mut chunks = keys.chunks_exact(batch).cycle();
        group.bench_function(BenchmarkId::new(name, batch), |bencher| {
            bencher.iter(|| black_box(sum(&store, chunks.next().expect("a cycle has no end"))));
        });
    }
    // Look-up alone: the record is read, the row is not.
    group.throughput(Throughput::Elements(1));
    let mut chunks = present.chunks_exact(1).cycle();
    group.bench_function("look_up/1", |bencher| {
        bencher.iter(|| {
            let mut found = false;
            store.get_many(chunks.next().expect("a cycle has no end"), NOW, |_, _, _| found = true);
            black_box(found)
        });
    });
    group.finish();
}

fn put_batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store_put");
    group.throughput(Throughput::Elements(BATCH as u64));
    let unit = vec![f16::from_f32(0.05); DIMS];
    for (name, durability) in [("process", Durability::Process), ("always", Durability::Always)] {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let store = open(folder.path(), ENTRIES, durability);
        let mut round = 0;
        group.bench_function(BenchmarkId::new(name, BATCH), |bencher| {
            bencher.iter_batched(
                || {
                    round += 1;
                    keys(&round.to_string(), BATCH)
                },
                |keys| put(&store, &keys, &unit),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, get, put_batches);
criterion_main!(benches);
