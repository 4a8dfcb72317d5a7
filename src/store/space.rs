//! The reading side of one model's space: the table, the map, and what is known of each slot.
//!
//! A read enters (see [`super::readers`]), finds each key's slot, shows the caller the row where it lies, and leaves. No
//! lock, no allocation, no system call. While it is inside, the bytes of a slot it has found do not change. Keys are looked
//! up some at a time, in three steps, so that the processor fetches what the next step needs for all of them together:
//!
//! ```text
//! buckets of all keys ──► candidates: their records, the first rows ──► key, checks, row by row; rows a few ahead
//! ```
//!
//! The first read of a slot after open checks its checksum; one that fails is a miss from then on, and is handed to
//! the writer to be erased.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::f16;

use super::bits::Bits;
use super::condemned::Condemned;
use super::config::{Cursor, Entry};
use super::disk::Files;
use super::error::Torn;
use super::info::Counters;
use super::layout::{Layout, Slot};
use super::map::Map;
use super::readers::{Readers, Stay};
use super::table::Table;
use crate::domain::{Key, ModelVersion};

/// How many keys are looked up together.
const KEYS_AT_ONCE: usize = 32;
/// How many rows ahead are asked for: their lines and those being read fit the processor's fill buffers several times
/// over, and the first level of cache.
const ROWS_AHEAD: usize = 4;
/// Stands for "not in the table": no slot has this number.
const NOWHERE: Slot = Slot::MAX;

/// What readers share.
pub(super) struct Space {
    pub(super) files: Arc<dyn Files>,
    pub(super) path: PathBuf,
    pub(super) model: ModelVersion,
    pub(super) layout: Layout,
    pub(super) map: Map,
    pub(super) counters: Counters,
    pub(super) table: Table,
    pub(super) readers: Readers,
    /// Slots in the table.
    pub(super) live: Bits,
    /// Slots whose checksum was right since open.
    pub(super) verified: Bits,
    /// Slots read since the eviction policy last looked.
    pub(super) visited: Bits,
    /// Slots whose checksum was wrong: in the table until the writer comes by, but never served.
    pub(super) damaged: Bits,
    quarantine: Mutex<Vec<Slot>>,
    /// What is in the table and not served any more.
    pub(super) condemned: Condemned,
}

/// A stay among the readers. Slots found by it do not change before it ends.
pub(super) struct Reading<'a> {
    space: &'a Space,
    _stay: Stay<'a>,
}

impl Space {
    pub(super) fn new(
        files: Arc<dyn Files>,
        path: PathBuf,
        model: ModelVersion,
        layout: Layout,
        map: Map,
    ) -> io::Result<Self> {
        let bits = || Bits::new(layout.capacity);
        Ok(Self {
            files,
            path,
            model,
            layout,
            map,
            counters: Counters::default(),
            table: Table::new(layout.capacity)?,
            readers: Readers::new(),
            live: bits(),
            verified: bits(),
            visited: bits(),
            damaged: bits(),
            quarantine: Mutex::default(),
            condemned: Condemned::default(),
        })
    }

    /// Begins to read.
    pub(super) fn read(&self) -> Reading<'_> {
        Reading { space: self, _stay: self.readers.enter() }
    }

    /// The slot of a key, whatever its state. For the writer; others go through [`Self::read`].
    pub(super) fn find(&self, key: &Key) -> Option<Slot> {
        self.table.find(key, |slot| self.map.record(slot).key == *key)
    }

    /// Shows each live, unexpired, intact entry, by the index of its key. `is_use`: eviction counts it as one.
    pub(super) fn visit(
        &self,
        keys: &[Key],
        now: u32,
        is_use: bool,
        mut found: impl FnMut(usize, Entry, &[f16]),
    ) -> Result<(), Torn> {
        let faults = self.map.faults();
        let reading = self.read();
        let mut found = |index, slot| {
            if is_use {
                self.visited.set(slot);
            }
            found(index, self.map.record(slot).entry(), self.map.row(slot));
        };
        if let [key] = keys {
            if let Some(slot) = reading.find_one(key)
                && reading.is_valid(slot, now)
            {
                found(0, slot);
            }
        } else {
            for (chunk, first) in keys.chunks(KEYS_AT_ONCE).zip((0..).step_by(KEYS_AT_ONCE)) {
                reading.visit_chunk(chunk, now, |place, slot| found(first + place, slot));
            }
        }
        drop(reading);
        self.unless_torn_since(faults)
    }

    /// Shows the next live, unexpired, intact entries in the order of their slots: see [`super::Store::scan`].
    pub(super) fn scan(
        &self,
        cursor: &mut Cursor,
        now: u32,
        limit: usize,
        until: u64,
        mut found: impl FnMut(Key, Entry, &[f16]),
    ) -> Result<usize, Torn> {
        let until = cursor.until.unwrap_or(until);
        let end = self.layout.slots().end;
        let (mut next, mut shown) = (cursor.next, 0);
        let faults = self.map.faults();
        while next < end && shown < limit {
            // Not for long each time: the writer waits for those who are inside.
            let reading = self.read();
            let from = next;
            for slot in from..end.min(from.saturating_add(KEYS_AT_ONCE as Slot)) {
                next = slot + 1;
                if !self.live.get(slot) {
                    continue;
                }
                let record = self.map.record(slot);
                if record.sequence() <= until && reading.is_valid(slot, now) {
                    found(record.key, record.entry(), self.map.row(slot));
                    shown += 1;
                    if shown == limit {
                        break;
                    }
                }
            }
        }
        self.unless_torn_since(faults)?;
        *cursor = Cursor { next, until: Some(until) };
        Ok(shown)
    }

    fn unless_torn_since(&self, faults: u64) -> Result<(), Torn> {
        if self.map.faults() == faults {
            return Ok(());
        }
        self.counters.torn_reads.add(1);
        Err(Torn)
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

    /// Checks a live slot's checksum whether or not it was found right before. Answers whether it was wrong.
    pub(super) fn scrub(&self, slot: Slot) -> bool {
        let _reading = self.read();
        if !self.live.get(slot) || self.damaged.get(slot) {
            return false;
        }
        self.verified.clear(slot);
        !self.verify(slot)
    }

    /// Slots found damaged since the writer last took the list.
    pub(super) fn quarantined(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory beside the map for a capacity.
    pub(super) fn memory_bytes_for(capacity: u64) -> u64 {
        Table::memory_bytes_for(capacity) + 4 * capacity.div_ceil(64) * size_of::<u64>() as u64
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        Self::memory_bytes_for(self.layout.capacity) + self.readers.memory_bytes()
    }
}

impl Reading<'_> {
    /// The slot of a key, whatever its state.
    pub(super) fn find(&self, key: &Key) -> Option<Slot> {
        self.space.find(key)
    }

    /// As `find`, asking for the row as soon as it is likely to be needed.
    #[inline]
    fn find_one(&self, key: &Key) -> Option<Slot> {
        let Space { table, map, .. } = self.space;
        table.find(key, |slot| {
            map.prefetch_row(slot);
            map.record(slot).key == *key
        })
    }

    /// Whether the entry in a slot of the table may be served.
    #[inline]
    pub(super) fn is_valid(&self, slot: Slot, now: u32) -> bool {
        let space = self.space;
        // Once a page of the map was lost, what was read before proves nothing: every read checks for itself.
        let verified = space.verified.get(slot) && !space.map.has_faulted();
        let record = space.map.record(slot);
        (verified || space.verify(slot)) && !record.is_expired(now) && !space.condemned.has(record)
    }

    #[inline]
    fn visit_chunk(&self, keys: &[Key], now: u32, mut found: impl FnMut(usize, Slot)) {
        let Space { table, map, .. } = self.space;
        keys.iter().for_each(|key| table.prefetch(key));
        let mut slots = [NOWHERE; KEYS_AT_ONCE];
        for (place, key) in keys.iter().enumerate() {
            if let Some(slot) = table.candidate(key) {
                slots[place] = slot;
                map.prefetch_record(slot);
                if place < ROWS_AHEAD {
                    map.prefetch_row(slot);
                }
            }
        }
        for (place, key) in keys.iter().enumerate() {
            if let Some(&ahead) = slots[..keys.len()].get(place + ROWS_AHEAD)
                && ahead != NOWHERE
            {
                map.prefetch_row(ahead);
            }
            let slot = match slots[place] {
                NOWHERE if !table.overflows(key) => continue,
                slot if slot != NOWHERE && map.record(slot).key == *key => slot,
                // In another bucket, or behind a key of the same hash.
                _ => match self.find(key) {
                    Some(slot) => slot,
                    None => continue,
                },
            };
            if self.is_valid(slot, now) {
                found(place, slot);
            }
        }
    }
}
