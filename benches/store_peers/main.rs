//! How fast is the store, and what is it beside LMDB, redb, fjall, moka, a locked `HashMap` and Redis?
//!
//! Two parts in one run. `rounds` asks every engine the same in turn, several times over, and keeps medians and CPU time,
//! because a machine that others use is never equally fast twice; its figures, with memory and disk, go to
//! `store_peers.json` in criterion's folder. Then come criterion's groups, of our store alone. `scripts/bench-report`
//! makes one table of both.
//!
//! `VECMEMO_BENCH_ENTRIES` is how many entries there are (a million if it is not set; 50000 ends within a minute and
//! shows only that everything runs). `cargo bench --bench store_peers -- rounds` leaves criterion's groups out, any other
//! filter leaves the rounds out.

#![allow(missing_docs)]
#![expect(clippy::print_stdout, reason = "what a bench is for")]

mod data;
mod engine;
mod fjall;
mod groups;
mod lmdb;
mod measure;
mod memory;
mod ours;
mod raw;
mod redb;
mod redis;
mod rounds;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use criterion::Criterion;

/// The length of rows wherever the length is not the question.
const DIMS: usize = 384;
/// Entries put together, as a job that fills a cache does.
const PUT_BATCH: u64 = 1000;
/// Keys asked for together, as a request with several texts does.
const GET_BATCH: usize = 32;

/// The entries that the figures are meant for: their rows are many times as large as a processor's caches.
const ENTRIES_MEANT: u64 = 1_000_000;
const ENTRIES_VARIABLE: &str = "VECMEMO_BENCH_ENTRIES";

fn entries() -> u64 {
    match std::env::var(ENTRIES_VARIABLE) {
        Err(_) => ENTRIES_MEANT,
        Ok(text) => match text.parse() {
            Ok(entries) if entries >= 10 * PUT_BATCH => entries,
            _ => panic!("{ENTRIES_VARIABLE} must be a number from {} on, not {text:?}", 10 * PUT_BATCH),
        },
    }
}

/// A folder that goes when dropped, on the disk that holds the build and not in memory.
fn fresh_folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder can be written")
}

/// Where criterion writes.
fn criterion_folder() -> PathBuf {
    std::env::var_os("CRITERION_HOME")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("criterion"), PathBuf::from)
}

fn main() {
    let entries = entries();
    if usage::is_wanted_of_this_process() {
        return usage::print(entries);
    }
    if entries < ENTRIES_MEANT {
        println!("{ENTRIES_VARIABLE}={entries}: a quick run. Its figures flatter whatever fits in a cache.");
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds_alone = arguments.iter().any(|argument| argument == "rounds");
    if rounds_alone || arguments.iter().all(|argument| argument == "--bench") {
        rounds::run(entries, &criterion_folder());
    }
    if rounds_alone {
        return;
    }
    // Criterion draws its samples again and again to tell chance from change: half of a quick run's time, and of no use
    // there. The table of `scripts/bench-report` stands in for its plots.
    let (warm_up_ms, measured_ms, samples, resamples) =
        if entries < ENTRIES_MEANT { (100, 400, 10, 2000) } else { (1000, 3000, 50, 100_000) };
    let mut criterion = Criterion::default()
        .output_directory(&criterion_folder())
        .without_plots()
        .warm_up_time(Duration::from_millis(warm_up_ms))
        .measurement_time(Duration::from_millis(measured_ms))
        .sample_size(samples)
        .nresamples(resamples)
        .configure_from_args();
    groups::run(&mut criterion, entries);
    criterion.final_summary();
}
