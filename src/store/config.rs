//! What callers give the store and get from it.

use std::time::Duration;

use half::f16;

use super::error::StoreError;
use super::eviction::Eviction;
use super::layout::{Layout, Slot};
use super::record::RECORD_BYTES;
use super::side;
use super::space::Space;
use crate::domain::{Key, Namespace, Pattern, TokenKey};

/// What a write that has returned survives. A wrong vector is never served, whatever is chosen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, `kill -9` included. Power loss costs what the system had not yet written by itself
    /// (Linux: the last half minute).
    #[default]
    Process,
    /// As `Process`; and power loss costs no more than about the last such interval: a thread syncs that often.
    Interval(Duration),
    /// Power loss too: one sync before the write returns, shared by those that wait at the same time.
    Always,
}

impl Durability {
    /// The one that promises more.
    #[must_use]
    pub fn stronger(self, other: Self) -> Self {
        match (self, other) {
            (Self::Always, _) | (_, Self::Always) => Self::Always,
            (Self::Interval(one), Self::Interval(other)) => Self::Interval(one.min(other)),
            (Self::Interval(interval), Self::Process) | (Self::Process, Self::Interval(interval)) => {
                Self::Interval(interval)
            }
            (Self::Process, Self::Process) => Self::Process,
        }
    }
}

/// How a store is kept. The tightest of its three bounds holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most entries held; beyond, the least used make room. The file is that large at once, but sparse.
    pub capacity_entries: u64,
    /// The most bytes of disk for everything in the folder that is this model's, side store included.
    pub disk_bytes_max: Option<u64>,
    /// The most bytes of memory for what the store keeps beside the map.
    pub memory_bytes_max: Option<u64>,
    /// What a write survives.
    pub durability: Durability,
    /// What is done in the background.
    pub upkeep: Upkeep,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            capacity_entries: 1 << 20,
            disk_bytes_max: None,
            memory_bytes_max: None,
            durability: Durability::default(),
            upkeep: Upkeep::default(),
        }
    }
}

/// Bytes of disk that an entry costs beside its record and row: its token key in the side store, whose pages are half
/// empty and are kept twice while they change, and its place in the table that a clean close leaves.
const SIDE_BYTES_AN_ENTRY: u64 = 400;
/// Bytes of disk for headers, alignment and an empty side store.
const FIXED_DISK_BYTES: u64 = 8 << 20;
/// Bytes of memory that do not depend on the capacity: the side store's cache, token keys on their way, buffers.
const FIXED_MEMORY_BYTES: u64 = side::CACHE_BYTES as u64 + (12 << 20);

/// The most token keys kept: more than there can be entries, so that dropping those of entries that are gone frees many
/// at a time.
pub(super) fn aliases_max(capacity: u64) -> u64 {
    capacity + capacity / 4 + 1024
}

/// What a model's entries take once there are as many as may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The most entries that all three bounds allow.
    pub entries: u64,
    /// The length of the file that is mapped.
    pub mapped_bytes: u64,
    /// Bytes of disk, side store included.
    pub disk_bytes: u64,
    /// Bytes of memory beside the map.
    pub memory_bytes: u64,
}

fn disk_bytes_an_entry(dims: usize) -> u64 {
    RECORD_BYTES + 2 * dims as u64 + SIDE_BYTES_AN_ENTRY
}

/// Bytes of memory that depend on the capacity. Beside table, marks and queue, the list of free slots: four bytes each, and as
/// much again while it grows.
fn memory_bytes_of(capacity: Slot) -> u64 {
    Space::memory_bytes_for(capacity.into()) + Eviction::memory_bytes_for(capacity) + 8 * u64::from(capacity)
}

impl Config {
    /// What a model with vectors of `dims` values takes at most.
    ///
    /// # Errors
    /// When the bounds leave no room for a single entry, or there can be no such file.
    pub fn footprint(&self, dims: usize) -> Result<Footprint, StoreError> {
        let entries = self.capacity_for(dims)?;
        let mapped_bytes = Layout::new(dims, entries)?.file_bytes;
        let capacity = Slot::try_from(entries).expect("a layout has at most 2^31 slots");
        Ok(Footprint {
            entries,
            mapped_bytes,
            disk_bytes: FIXED_DISK_BYTES + entries * disk_bytes_an_entry(dims),
            memory_bytes: FIXED_MEMORY_BYTES + memory_bytes_of(capacity),
        })
    }

    /// The most entries that all three bounds allow.
    pub(super) fn capacity_for(&self, dims: usize) -> Result<u64, StoreError> {
        let by_disk = |bytes: u64| bytes.saturating_sub(FIXED_DISK_BYTES) / disk_bytes_an_entry(dims);
        const MANY: Slot = 1 << 20;
        let by_memory = |bytes: u64| {
            let for_entries = u128::from(bytes.saturating_sub(FIXED_MEMORY_BYTES));
            (for_entries * u128::from(MANY) / u128::from(memory_bytes_of(MANY))) as u64
        };
        let bounds = [
            ("disk_bytes_max", self.disk_bytes_max, self.disk_bytes_max.map(by_disk)),
            ("memory_bytes_max", self.memory_bytes_max, self.memory_bytes_max.map(by_memory)),
        ];
        let mut capacity = self.capacity_entries;
        for (name, bytes, entries) in bounds {
            if let (Some(bytes), Some(entries)) = (bytes, entries) {
                if entries == 0 {
                    return Err(StoreError::BoundTooTight { name, bytes });
                }
                capacity = capacity.min(entries);
            }
        }
        Ok(capacity)
    }
}

/// Work that a thread of the store's own does in the background. By default there is none, and no thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// How often expired entries are swept out; never if zero. An expired entry is not served, swept or not.
    pub sweep_every: Duration,
    /// How fast entries' checksums are checked, round and round; not at all if zero.
    pub scrub_bytes_per_second: u64,
}

/// The longest payload.
pub const PAYLOAD_BYTES_MAX: usize = 4096;

/// One embedding to keep.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    /// What it is found by.
    pub key: Key,
    /// The unit vector, as long as the model's vectors are.
    pub unit: &'a [f16],
    /// The length it had; finite.
    pub norm: f32,
    /// How many tokens the text had; from 65,535 on it is kept as 65,535.
    pub tokens: u32,
    /// Whether the text was cut to fit the model.
    pub truncated: bool,
    /// Whose it is.
    pub namespace: &'a Namespace,
    /// When it ceases to be valid, in Unix seconds; never if `None`.
    pub expires: Option<u32>,
    /// The name of its token ids, if other spellings of the same tokens shall find it.
    pub token_key: Option<TokenKey>,
    /// Names it can be invalidated by.
    pub tags: &'a [String],
    /// Overwrite what is stored under the key; if false, a valid entry stays as it is.
    pub replace: bool,
    /// Whether the vector was taken over from another entry rather than computed.
    pub copied: bool,
    /// Never evicted to make room. It expires and can be removed as any other.
    pub pinned: bool,
    /// To be computed again shortly before it expires, if it is still asked for.
    pub refresh_ahead: bool,
    /// To be computed again when it is next asked for; served until then.
    pub stale: bool,
    /// What it survives, if that is more than [`Config::durability`] promises; less is never.
    pub durability: Option<Durability>,
    /// The most entries that its namespace may have, this one among them: when the put returns the oldest that were not read have gone. To be
    /// the same for all entries of a namespace; `None`: no bound any more.
    pub quota: Option<u64>,
    /// What the caller wants back with it: JSON, at most [`PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Option<&'a str>,
}

impl<'a> NewEntry<'a> {
    /// A vector under a key, without anything else said of it; it does not replace.
    #[must_use]
    pub fn new(key: Key, unit: &'a [f16], norm: f32, namespace: &'a Namespace) -> Self {
        Self {
            key,
            unit,
            norm,
            tokens: 0,
            truncated: false,
            namespace,
            expires: None,
            token_key: None,
            tags: &[],
            replace: false,
            copied: false,
            pinned: false,
            refresh_ahead: false,
            stale: false,
            durability: None,
            quota: None,
            payload: None,
        }
    }
}

/// The facts of a stored embedding, besides its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// The length the vector had before it was scaled to one.
    pub norm: f32,
    /// How many tokens the text had; 65,535 stands for that many or more.
    pub tokens: u32,
    /// Whether the text was cut to fit the model.
    pub truncated: bool,
    /// When it was written, in Unix seconds.
    pub created: u32,
    /// When it ceases to be valid, in Unix seconds.
    pub expires: Option<u32>,
    /// Whether the vector was taken over from another entry.
    pub copied: bool,
    /// Whether it is never evicted to make room.
    pub pinned: bool,
    /// Whether it is to be computed again shortly before it expires.
    pub refresh_ahead: bool,
    /// Whether it is to be computed again when it is next asked for.
    pub stale: bool,
    /// Its place in the order of writes: later entries have larger numbers.
    pub sequence: u64,
    /// The number of its namespace; 0 is the default namespace.
    pub namespace: u32,
}

/// Which entries are meant. Only those that would be served match.
#[derive(Clone, Copy, Debug)]
pub enum Selector<'a> {
    /// Every entry.
    All,
    /// Those under these keys.
    Keys(&'a [Key]),
    /// Those with this tag.
    Tag(&'a str),
    /// Those with a tag that matches.
    TagPattern(&'a Pattern),
    /// Those of this namespace.
    Namespace(&'a Namespace),
    /// Those written before this Unix second.
    CreatedBefore(u32),
}

/// Where a scan stands. One that is begun sees each entry that was there then and stays; later ones it does not see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    pub(super) next: u32,
    /// The last sequence number given out when the scan began.
    pub(super) until: Option<u64>,
}

/// What a piece of scrubbing found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Entries whose checksums were checked.
    pub checked: usize,
    /// Those among them whose checksum was wrong: no longer served, and erased by the next write.
    pub damaged: usize,
    /// Whether the last entry of the file was reached; the next piece begins at the first.
    pub finished: bool,
}
