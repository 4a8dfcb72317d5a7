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
    /// Valid entries dropped because their namespace had more than it may.
    pub over_quota: u64,
    /// Expired entries dropped.
    pub expired: u64,
    /// Entries removed because a caller said so.
    pub removed: u64,
    /// Entries replaced by newer ones of their key.
    pub replaced: u64,
    /// Entries that are never evicted.
    pub pinned: u64,
    /// Bytes of disk for the entries held: records and rows.
    pub live_bytes: u64,
    /// Bytes of disk for slots that held entries and are free now; the next entries take them.
    pub dead_bytes: u64,
    /// Reads that met a file cut short, and were done again.
    pub torn_reads: u64,
    /// How often a part of the file was found cut off or unreadable; what it held is computed again.
    pub lost_pages: u64,
    /// Entries whose checksum the scrubber has checked.
    pub scrubbed: u64,
    /// How many times the scrubber has been through all of them.
    pub scrub_passes: u64,
    /// Whether the store was opened after a clean close, from the table written then.
    pub opened_clean: bool,
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

/// How many entries have which age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ages {
    /// Younger than a minute.
    pub minute: u64,
    /// Then younger than an hour.
    pub hour: u64,
    /// Then younger than a day.
    pub day: u64,
    /// Then younger than a week.
    pub week: u64,
    /// Then younger than thirty days.
    pub month: u64,
    /// The rest.
    pub older: u64,
}

impl Ages {
    pub(super) fn count(&mut self, age_seconds: u32) {
        *match age_seconds {
            0..60 => &mut self.minute,
            60..3600 => &mut self.hour,
            3600..86_400 => &mut self.day,
            86_400..604_800 => &mut self.week,
            604_800..2_592_000 => &mut self.month,
            _ => &mut self.older,
        } += 1;
    }
}

/// Events, counted where they happen.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) quarantined: Counter,
    pub(super) evicted: Counter,
    pub(super) over_quota: Counter,
    pub(super) expired: Counter,
    pub(super) removed: Counter,
    pub(super) replaced: Counter,
    pub(super) write_errors: Counter,
    pub(super) torn_reads: Counter,
    pub(super) scrubbed: Counter,
    pub(super) scrub_passes: Counter,
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
