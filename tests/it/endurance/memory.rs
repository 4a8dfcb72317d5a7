//! The memory the store says it has is the memory it has.
//!
//! Measured in a process of its own: anonymous memory alone (`RssAnon`), for pages of mapped files are the system's, and
//! are given back when it needs them.

use std::process::Command;

use half::f16;
use vecmemo::domain::{ContentHash, Namespace, Scope, Truncation, TruncationDirection};
use vecmemo::engine::fake;
use vecmemo::store::{Config, NewEntry, Store};

use super::long;

const CHILD: &str = "VECMEMO_TEST_MEMORY_CHILD";
const TEST: &str = "endurance::memory::the_accounted_memory_is_that_of_the_process";
const DIMS: usize = 16;

/// A line of `/proc/self/status`, in bytes.
pub(super) fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() << 10
}

#[test]
fn the_accounted_memory_is_that_of_the_process() {
    match std::env::var(CHILD).as_deref() {
        Ok("plain") => fill_and_measure(false),
        Ok(_) => fill_and_measure(true),
        Err(_) => ["plain", "with tags and token keys"].into_iter().for_each(run),
    }
}

/// Runs the test again in a child.
fn run(kind: &str) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, kind)
        // Freed memory goes back at once, so that what is resident is what is held.
        .env("MALLOC_TRIM_THRESHOLD_", "0")
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{said}");
    said.lines().filter(|line| line.contains("accounted")).for_each(|line| println!("{kind}: {line}"));
}

fn fill_and_measure(attached: bool) {
    let entries: u32 = if long() { 4_000_000 } else { 1_000_000 } / if attached { 10 } else { 1 };
    let folder = tempfile::tempdir().unwrap();
    let version = fake::model(DIMS).card.version;
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 64 };
    let scope = Scope::new(&Namespace::default(), &version, "", truncation);
    let row = |n: u32| -> Vec<f16> { (0..DIMS as u32).map(|place| f16::from_f32((n % 97 + place) as f32)).collect() };
    let namespace = Namespace::default();
    let tags = ["a tag".to_owned()];
    // What runs once for all stores is not the store's: threads, buffers of the C library, the redb file's first pages.
    let before = status_bytes("RssAnon:");
    // Half of the entries are evicted again: what the policy remembers of those is memory too.
    let config = Config { capacity_entries: u64::from(entries / 2), ..Config::default() };
    let store = Store::open(folder.path(), &version, DIMS, &config).unwrap();
    for share in 1..=4 {
        let (from, to) = (entries / 4 * (share - 1), entries / 4 * share);
        for first in (from..to).step_by(1000) {
            let rows: Vec<_> = (first..first + 1000).map(row).collect();
            let put: Vec<_> = (first..)
                .zip(&rows)
                .map(|(n, row)| NewEntry {
                    token_key: attached.then(|| scope.token_key(&[n])),
                    tags: if attached && n % 16 == 0 { &tags } else { &[] },
                    ..NewEntry::new(scope.key(ContentHash::of(&n.to_string())), row, 1.0, &namespace)
                })
                .collect();
            store.put_many(&put, 1_800_000_000).unwrap();
        }
        store.sync().unwrap();
        let info = store.info();
        let grown = status_bytes("RssAnon:") - before;
        let ratio = info.memory_bytes as f64 / grown as f64;
        println!(
            "{} entries, {} evicted: accounted {} bytes, resident growth {grown} bytes, ratio {ratio:.3}",
            info.entries, info.evicted, info.memory_bytes
        );
        // Before that, there are pages that were never touched: the accounted memory is what it will be.
        if share == 4 {
            assert!((0.9..=1.1).contains(&ratio), "accounted and resident memory differ");
        }
    }
}
