//! Criterion's groups, of our store: each says how many entries it handles a second.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput};
use tempfile::TempDir;

use crate::data::{ABSENT, Key, Random, Rows, key};
use crate::engine::{Engine, Setting};
use crate::rounds::Crashed;
use crate::{DIMS, GET_BATCH, PUT_BATCH, fresh_folder, ours};

/// The capacity where puts are the question: soon reached, so that each put evicts, as in a cache that has been in use.
const PUT_CAPACITY: u64 = 100_000;
/// More keys than caches remember, in random order.
const KEYS: u64 = 1 << 18;

pub(crate) fn run(criterion: &mut Criterion, entries: u64) {
    cache_put(criterion, entries);
    {
        let (folder, engine) = filled(entries);
        cache_get(criterion, &*engine, entries);
        concurrent_access(criterion, &*engine, entries);
        drop(engine);
        reopen(criterion, &folder, entries);
    }
    durable_put(criterion);
    scale(criterion, entries);
}

fn open(folder: &TempDir, entries: u64) -> Box<dyn Engine> {
    ours::open(folder.path(), Setting { dims: DIMS, entries, durable: false })
}

fn filled(entries: u64) -> (TempDir, Box<dyn Engine>) {
    let folder = fresh_folder();
    let engine = open(&folder, entries);
    let rows = Rows::new(DIMS);
    for start in (0..entries).step_by(PUT_BATCH as usize) {
        engine.put(&rows.batch(start..entries.min(start + PUT_BATCH)));
    }
    (folder, engine)
}

fn keys(start: u64, entries: u64) -> Vec<Key> {
    let mut random = Random(start ^ entries);
    (0..KEYS).map(|_| key(start + random.below(entries))).collect()
}

/// Batches of new entries into a store that is full.
fn put(criterion: &mut Criterion, group: &str, id: BenchmarkId, setting: Setting) {
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(PUT_BATCH));
    let rows = Rows::new(setting.dims);
    let folder = fresh_folder();
    let engine = ours::open(folder.path(), setting);
    let mut next = 0;
    group.bench_function(id, |bencher| {
        bencher.iter_batched(
            || {
                next += PUT_BATCH;
                rows.batch(next - PUT_BATCH..next)
            },
            |batch| engine.put(&batch),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn cache_put(criterion: &mut Criterion, entries: u64) {
    for dims in [128, 384, 768, 1536] {
        let setting = Setting { dims, entries: PUT_CAPACITY.min(entries), durable: false };
        put(criterion, "cache_put", BenchmarkId::from_parameter(dims), setting);
    }
}

fn durable_put(criterion: &mut Criterion) {
    let setting = Setting { dims: DIMS, entries: PUT_CAPACITY, durable: true };
    put(criterion, "durable_put", BenchmarkId::from_parameter(PUT_BATCH), setting);
}

fn cache_get(criterion: &mut Criterion, engine: &dyn Engine, entries: u64) {
    let mut group = criterion.benchmark_group("cache_get");
    let (present, absent) = (keys(0, entries), keys(ABSENT, entries));
    let mut out = vec![0.0; DIMS * GET_BATCH];
    for (name, keys, batch) in [("hit", &present, 1), ("miss", &absent, 1), ("batch_32", &present, GET_BATCH)] {
        group.throughput(Throughput::Elements(batch as u64));
        let mut chunks = keys.chunks_exact(batch).cycle();
        let out = &mut out[..DIMS * batch];
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(engine.get_many(chunks.next().expect("a cycle has no end"), out)));
        });
    }
    group.finish();
}

/// Several threads, each putting a new entry and getting a random one in turn; and reading alone, with one and with two.
fn concurrent_access(criterion: &mut Criterion, engine: &dyn Engine, entries: u64) {
    let mut group = criterion.benchmark_group("concurrent_access");
    group.throughput(Throughput::Elements(1));
    let rows = Rows::new(DIMS);
    let present = keys(0, entries);
    let next = AtomicU64::new(entries);
    let work = |thread: u64, operations: u64, is_writing: bool| {
        let mut out = vec![0.0; DIMS];
        let mut keys = present.iter().cycle().skip((thread * KEYS / 16) as usize);
        for operation in 0..operations {
            if is_writing && operation % 2 == 0 {
                let index = next.fetch_add(1, Relaxed);
                engine.put(&rows.batch(index..index + 1));
            } else {
                black_box(engine.get(keys.next().expect("a cycle has no end"), &mut out));
            }
        }
    };
    // Reads first: afterwards, some of the keys are evicted.
    let reads = [("read_1", 1, false), ("read_2", 2, false)];
    let mixed = [("1", 1, true), ("2", 2, true), ("4", 4, true), ("8", 8, true), ("16", 16, true)];
    for (name, threads, is_writing) in reads.into_iter().chain(mixed) {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|operations| {
                let started = Instant::now();
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        let share = operations / threads + u64::from(thread < operations % threads);
                        scope.spawn(move || work(thread, share, is_writing));
                    }
                });
                started.elapsed()
            });
        });
    }
    group.finish();
}

/// Opening what a kill and what a close has left; an operation is an entry that is there again.
fn reopen(criterion: &mut Criterion, folder: &TempDir, entries: u64) {
    let mut group = criterion.benchmark_group("reopen");
    group.throughput(Throughput::Elements(entries)).sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(200));
    group.bench_function("clean", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| opening(folder.path(), entries)).sum());
    });
    let engine = open(folder, entries);
    // A write, so that what the close left is no longer there.
    engine.put(&Rows::new(DIMS).batch(ABSENT - 1..ABSENT));
    let crashed = Crashed::of(folder.path());
    drop(engine);
    group.bench_function("crash", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| opening(crashed.again(), entries)).sum());
    });
    group.finish();
}

fn opening(folder: &std::path::Path, entries: u64) -> Duration {
    let started = Instant::now();
    let engine = ours::open(folder, Setting { dims: DIMS, entries, durable: false });
    let opening = started.elapsed();
    drop(engine);
    opening
}

/// One get at a time from stores of growing size.
fn scale(criterion: &mut Criterion, entries_max: u64) {
    let mut group = criterion.benchmark_group("scale");
    group.throughput(Throughput::Elements(1));
    let sizes = [("10k", 10_000), ("100k", 100_000), ("1M", 1_000_000)];
    for (name, entries) in sizes.into_iter().filter(|&(_, entries)| entries <= entries_max) {
        let (_folder, engine) = filled(entries);
        let keys = keys(0, entries);
        let mut keys = keys.iter().cycle();
        let mut out = vec![0.0; DIMS];
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(engine.get(keys.next().expect("a cycle has no end"), &mut out)));
        });
    }
    group.finish();
}
