//! The reading side of one model's space: the table, the map, and what is known of each slot.
//!
//! A read takes the table's lock once a batch, finds each key's slot, and shows the caller the row where it lies. The
//! lock is what keeps slots in place: the writer takes a slot out of the table under the same lock before it changes
//! the slot's bytes. The first read of a slot after open checks its checksum; one that fails is a miss from then on,
//! and is handed to the writer to be erased.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use half::f16;

use super::bits::Bits;
use super::config::Entry;
use super::info::Counters;
use super::layout::{Layout, Slot};
use super::map::Map;
use super::table::Table;
use crate::domain::Key;

/// How many keys are looked up before the first row is touched, so that the processor waits for them together.
const KEYS_AT_ONCE: usize = 32;
/// Stands for "not in the table": no slot has this number.
const NOWHERE: Slot = Slot::MAX;

/// What readers share.
pub(super) struct Space {
    pub(super) path: PathBuf,
    pub(super) layout: Layout,
    pub(super) map: Map,
    pub(super) counters: Counters,
    table: RwLock<Table>,
    /// Slots whose checksum was right since open.
    pub(super) verified: Bits,
    /// Slots read since the hand of the clock last passed.
    pub(super) visited: Bits,
    /// Slots whose checksum was wrong: in the table until the writer comes by, but never served.
    pub(super) damaged: Bits,
    quarantine: Mutex<Vec<Slot>>,
}

impl Space {
    pub(super) fn new(path: PathBuf, layout: Layout, map: Map) -> Self {
        let bits = || Bits::new(layout.capacity);
        Self {
            path,
            layout,
            map,
            counters: Counters::default(),
            table: RwLock::new(Table::new(layout.capacity)),
            verified: bits(),
            visited: bits(),
            damaged: bits(),
            quarantine: Mutex::default(),
        }
    }

    /// The table, for readers. Nothing panics while it is half changed, so a poisoned lock holds a whole table.
    pub(super) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table, for the writer.
    pub(super) fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of a key, whatever its state.
    pub(super) fn find(&self, table: &Table, key: &Key) -> Option<Slot> {
        table.find(key, |slot| self.map.record(slot).key == *key)
    }

    /// Shows each live, unexpired, intact entry, by the index of its key. No allocation, no system call.
    pub(super) fn visit(&self, keys: &[Key], now: u32, mut found: impl FnMut(usize, Entry, &[f16])) {
        let table = self.table();
        for (chunk_number, chunk) in keys.chunks(KEYS_AT_ONCE).enumerate() {
            let mut slots = [NOWHERE; KEYS_AT_ONCE];
            for (slot, key) in slots.iter_mut().zip(chunk) {
                *slot = self.find(&table, key).unwrap_or(NOWHERE);
            }
            for (place, &slot) in slots[..chunk.len()].iter().enumerate() {
                if slot == NOWHERE || !self.is_valid(slot, now) {
                    continue;
                }
                self.visited.set(slot);
                let index = chunk_number * KEYS_AT_ONCE + place;
                found(index, self.map.record(slot).entry(), self.map.row(slot));
            }
        }
    }

    /// Whether the entry in a slot of the table may be served.
    pub(super) fn is_valid(&self, slot: Slot, now: u32) -> bool {
        (self.verified.get(slot) || self.verify(slot)) && !self.map.record(slot).is_expired(now)
    }

    /// The first touch since open: checks the checksum. A slot found damaged is counted once.
    #[cold]
    fn verify(&self, slot: Slot) -> bool {
        if self.damaged.get(slot) {
            return false;
        }
        if self.map.record(slot).is_intact(self.map.row(slot)) {
            self.verified.set(slot);
            return true;
        }
        if self.damaged.set(slot) {
            self.counters.quarantined.add(1);
            tracing::warn!(path = %self.path.display(), slot, "an entry is damaged: it will be computed again");
            self.quarantined().push(slot);
        }
        false
    }

    /// Slots found damaged since the writer last took the list.
    pub(super) fn quarantined(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let bits = [&self.verified, &self.visited, &self.damaged];
        self.table().memory_bytes() + bits.iter().map(|bits| bits.memory_bytes()).sum::<u64>()
    }
}
