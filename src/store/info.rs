//! What the store says about itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The state of a store at one moment. Counts are since it was opened, unless they say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Info {
    /// The version of the file's format.
    pub format_version: u32,
    /// Length of a vector.
    pub dims: usize,
    /// Entries held, expired ones that were not yet dropped included.
    pub entries: u64,
    /// The most entries held.
    pub capacity_entries: u64,
    /// Bytes the files occupy on disk.
    pub allocated_bytes: u64,
    /// Bytes the files would occupy without holes.
    pub apparent_bytes: u64,
    /// Bytes of memory the store keeps for itself, the system's page cache not counted.
    pub memory_bytes: u64,
    /// Entries found damaged: never served, erased by the next write.
    pub quarantined: u64,
    /// Valid entries dropped to make room.
    pub evicted: u64,
    /// Expired entries dropped.
    pub expired: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Syncs done.
    pub syncs: u64,
    /// Token keys not yet on disk.
    pub token_keys_pending: u64,
    /// Why the store keeps less than it promises, if so; it still answers.
    pub degraded: Option<String>,
    /// What was found damaged beyond use at open and put aside, one line each.
    pub put_aside: Vec<String>,
}

/// Events, counted where they happen.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) quarantined: Counter,
    pub(super) evicted: Counter,
    pub(super) expired: Counter,
    pub(super) write_errors: Counter,
}

/// A number that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
