//! A bound on the disk holds under a workload that would need five times as much, and the memory stays beside it.
//!
//! The short form puts 100 MB through a bound of 20 MB; the long one 10 GB through 2 GB. Every file of the folder counts,
//! side store included, by the blocks it has on disk, looked at all the time by a second thread. In a process of
//! its own, so that its resident memory is the store's.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use half::f16;
use vecmemo::domain::{ContentHash, Key, Namespace, Scope, Truncation, TruncationDirection};
use vecmemo::engine::fake;
use vecmemo::store::{Config, NewEntry, Store};

use super::long;
use super::memory::status_bytes;

const CHILD: &str = "VECMEMO_TEST_BOUND_CHILD";
const TEST: &str = "endurance::bound::a_disk_bound_holds_under_five_times_the_work";
const DIMS: usize = 384;
/// What the program, its libraries and this test's own buffers may take beside the bound.
const PROCESS_BYTES: u64 = 64 << 20;
const NOW: u32 = 1_800_000_000;
const AT_ONCE: u32 = 1000;

#[test]
fn a_disk_bound_holds_under_five_times_the_work() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return fill(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{said}");
    said.lines().filter(|line| line.starts_with("bound")).for_each(|line| println!("{line}"));
}

/// What the files of a folder take on disk.
fn allocated_bytes(folder: &Path) -> u64 {
    // A file may go between being listed and being looked at.
    let files = std::fs::read_dir(folder).unwrap().flatten();
    files.map(|file| file.metadata().map_or(0, |metadata| metadata.blocks() * 512)).sum()
}

/// A row that no other number has, and quickly made: the store takes the caller's word for its length.
fn row(n: u32) -> Vec<f16> {
    let value =
        |place: u32| f16::from_bits((n.wrapping_mul(2_654_435_761).rotate_left(place % 32) ^ place) as u16 & 0x3bff);
    (0..DIMS as u32).map(value).collect()
}

fn fill(folder: &Path) {
    let (bound, work): (u64, u64) = if long() { (2_000_000_000, 10_000_000_000) } else { (20_000_000, 100_000_000) };
    let entries = u32::try_from(work / (DIMS as u64 * 2 + 64)).unwrap() / AT_ONCE * AT_ONCE;
    let version = fake::model(DIMS).card.version;
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 64 };
    let scope = Scope::new(&Namespace::default(), &version, "", truncation);
    let key = |n: u32| -> Key { scope.key(ContentHash::of(&n.to_string())) };
    let namespace = Namespace::default();
    let config = Config { capacity_entries: 1 << 24, disk_bytes_max: Some(bound), ..Config::default() };

    let open = || Store::open(folder, &version, DIMS, &config).unwrap();
    let (done, files_peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    let memory_peak = std::thread::scope(|scope_of_threads| {
        let _ends_the_watch = SetOnDrop(&done);
        scope_of_threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                files_peak.fetch_max(allocated_bytes(folder), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let store = open();
        let mut memory_peak = 0;
        for first in (0..entries).step_by(AT_ONCE as usize) {
            let rows: Vec<_> = (first..first + AT_ONCE).map(row).collect();
            let tags: Vec<[String; 2]> =
                (first..first + AT_ONCE).map(|n| ["all".to_owned(), format!("document-{}", n / 64)]).collect();
            let put: Vec<_> = (first..)
                .zip(rows.iter().zip(&tags))
                .map(|(n, (row, tags))| NewEntry {
                    token_key: Some(scope.token_key(&[n])),
                    tags: if n % 16 == 0 { tags } else { &[] },
                    ..NewEntry::new(key(n), row, 1.0, &namespace)
                })
                .collect();
            store.put_many(&put, NOW).unwrap();
            let (files, memory) = (allocated_bytes(folder), status_bytes("VmRSS:"));
            memory_peak = memory_peak.max(memory);
            assert!(files <= bound, "after {first} entries the files take {files} bytes");
            assert!(memory <= bound + PROCESS_BYTES, "after {first} entries the process has {memory} bytes");
        }
        check(&store, &key, entries, bound);
        let info = store.info();
        println!(
            "bound: {} entries of {entries} stay ({} evicted), {} bytes of memory accounted, {:?}",
            info.entries,
            info.evicted,
            info.memory_bytes,
            started.elapsed()
        );
        drop(store);
        let store = open();
        check(&store, &key, entries, bound);
        drop(store);
        memory_peak
    });
    let files_peak = files_peak.load(Ordering::Relaxed).max(allocated_bytes(folder));
    println!("bound: {bound} bytes; at most {files_peak} bytes of files and {memory_peak} bytes of resident memory");
    assert!(files_peak <= bound);
}

/// Ends the second thread however the first ends.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The bound is not held by keeping little: what was put last is there, and is right.
fn check(store: &Store, key: &dyn Fn(u32) -> Key, entries: u32, bound: u64) {
    let info = store.info();
    // Beside rows and records: token keys and tags in the side store, and some MB that do not depend on the bound.
    let least = if long() { bound / 10 * 6 } else { bound / 10 * 3 };
    assert!(info.entries * (DIMS as u64 * 2 + 64) > least, "{} entries use the bound", info.entries);
    let last: Vec<u32> = (entries - 2000..entries).collect();
    let keys: Vec<Key> = last.iter().map(|&n| key(n)).collect();
    let mut found = 0;
    let shown = store.get_many(&keys, NOW, |index, _, shown| {
        assert_eq!(shown, row(last[index]), "a wrong vector");
        found += 1;
    });
    shown.unwrap();
    assert!(found >= last.len() * 9 / 10, "{found} of the last {} are there", last.len());
}
