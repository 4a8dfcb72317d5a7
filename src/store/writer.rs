//! The one writer of a space: which slots are free, and in what order bytes reach the file.
//!
//! ```text
//! free ──rows──records──► written, not in the table ──publish──► live ──unpublish──► doomed ──readers leave, erase──► free
//!                                    └─ a write failed ─────────────────────────────────►┘
//! ```
//!
//! Only *live* slots are in the table, so only they are read. A doomed slot is erased when no reader is left that may have
//! found it, and becomes free when its record is zero on disk, not before: a row is never overwritten under a record that
//! still claims it. If erasing fails the slot stays doomed, and the next write tries again.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::disk::Disk;
use super::error::StoreError;
use super::eviction::Eviction;
use super::layout::Slot;
use super::quota::Quotas;
use super::record::{RECORD_BYTES, Record, SEQUENCE_MAX};
use super::snapshot::{self, Remembered};
use super::space::Space;
use super::watch::Watcher;
use crate::domain::Key;

/// How many entries make room at a time: neighbours are erased, and later filled, with one write.
const SWEEP_ENTRIES: u64 = 16;
/// How many slots ahead of the one being recovered its bucket of the table is asked for.
const RECOVER_AHEAD: Slot = 24;
/// How many keys' buckets are asked for together.
const KEYS_AT_ONCE: usize = 32;

/// The state that only writes need.
pub(super) struct Writer {
    space: Arc<Space>,
    disk: Arc<dyn Disk>,
    /// Slots from here on were never used.
    fresh: Slot,
    freed: Vec<Slot>,
    doomed: Vec<Slot>,
    eviction: Eviction,
    quotas: Quotas,
    last_sequence: u64,
    /// No live entry expires before this.
    earliest_expiry: u32,
    pinned: u64,
    /// Keys of dropped entries that had tags or a payload: these are still in the side store.
    detached: Vec<Key>,
    /// Whether this session has written, so that what a former close has left is gone.
    begun: bool,
    /// Whether anything was written, or tried to be, since this was last asked.
    wrote: bool,
    rows: Vec<u8>,
    watchers: Vec<Arc<dyn Watcher>>,
}

/// A record without its seal, and the row it will be sealed over.
pub(super) type Draft<'a> = (Record, &'a [f16]);

/// What others may know of the writer without waiting for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) memory_bytes: u64,
    pub(super) pinned: u64,
    pub(super) dead: u64,
    pub(super) last_sequence: u64,
}

/// A map by key. Keys are hashes, so their first bytes will do.
pub(super) type KeyMap<V> = HashMap<Key, V, BuildHasherDefault<PrefixHasher>>;

/// Takes the first eight bytes it is given for the hash.
#[derive(Default)]
pub(super) struct PrefixHasher(u64);

impl Hasher for PrefixHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Writer {
    fn new(space: Arc<Space>, disk: Arc<dyn Disk>) -> Self {
        Self {
            eviction: Eviction::new(space.layout.slots().end),
            quotas: Quotas::default(),
            space,
            disk,
            fresh: 0,
            freed: Vec::new(),
            doomed: Vec::new(),
            last_sequence: 0,
            earliest_expiry: u32::MAX,
            pinned: 0,
            detached: Vec::new(),
            begun: false,
            wrote: false,
            rows: Vec::new(),
            watchers: Vec::new(),
        }
    }

    /// Tells it of every change from now on.
    pub(super) fn watch(&mut self, watcher: Arc<dyn Watcher>) {
        self.watchers.push(watcher);
    }

    /// Tells one of them of the valid ones among some slots' entries.
    pub(super) fn tell(&self, watcher: &dyn Watcher, slots: Range<Slot>, now: u32) {
        let reading = self.space.read();
        for slot in slots.filter(|&slot| self.space.live.get(slot)) {
            if reading.is_valid(slot, now) {
                let record = self.space.map.record(slot);
                watcher.published(slot, record.key, record.entry(), self.space.map.row(slot));
            }
        }
    }

    fn tell_published(&self, slot: Slot, record: &Record) {
        for watcher in &self.watchers {
            watcher.published(slot, record.key, record.entry(), self.space.map.row(slot));
        }
    }

    /// Takes up where a clean close has left off: the table is filled already.
    pub(super) fn remember(space: Arc<Space>, disk: Arc<dyn Disk>, remembered: Remembered) -> Self {
        let mut writer = Self::new(space, disk);
        let Remembered { fresh, last_sequence, earliest_expiry, pinned } = remembered;
        let live = &writer.space.live;
        writer.freed = live.clear_below(fresh).collect();
        writer.eviction.adopted_all(live);
        // Records are read only if there is a reason to: after a clean close none has been touched yet.
        if pinned > 0 {
            live.iter()
                .filter(|&slot| writer.space.map.record(slot).is_pinned())
                .for_each(|slot| writer.eviction.removed(slot));
        }
        Self { fresh, last_sequence, earliest_expiry, pinned, ..writer }
    }

    /// Reads the slot region of a file just opened, and fills the table with what is live in it. `used` are the slots
    /// that may hold anything. Rows are not read: checksums are checked when an entry is first served. The exception is a
    /// sequence number of the upper half of its range, which a flipped bit is likelier to explain than 2^39 writes;
    /// believed, it would use the numbers up.
    pub(super) fn recover(space: Arc<Space>, disk: Arc<dyn Disk>, used: impl IntoIterator<Item = Range<Slot>>) -> Self {
        let mut writer = Self::new(Arc::clone(&space), disk);
        for range in used {
            for slot in range.clone() {
                if slot + RECOVER_AHEAD < range.end {
                    space.table.prefetch(&space.map.record(slot + RECOVER_AHEAD).key);
                }
                writer.recover_slot(slot);
            }
        }
        writer
    }

    fn recover_slot(&mut self, slot: Slot) {
        let space = Arc::clone(&self.space);
        let record = space.map.record(slot);
        if record.is_free() {
            return;
        }
        self.freed.extend(self.fresh..slot);
        self.fresh = slot + 1;
        let implausible = record.sequence() > SEQUENCE_MAX / 2 && !record.is_intact(space.map.row(slot));
        if !record.is_live() || implausible {
            space.counters.quarantined.add(1);
            self.doomed.push(slot);
            return;
        }
        if let Some(other) = space.find(&record.key) {
            // A crash came between writing the new entry and erasing the old.
            if space.map.record(other).sequence() >= record.sequence() {
                self.doomed.push(slot);
                return;
            }
            space.table.remove(&record.key, other);
            self.set_dead(other, space.map.record(other).is_pinned());
            self.doomed.push(other);
        }
        space.table.insert(&record.key, slot);
        self.set_live(slot, record);
        if !record.is_pinned() {
            self.eviction.adopted(slot);
        }
        self.last_sequence = self.last_sequence.max(record.sequence());
    }

    /// Gives entries to come sequence numbers after this one. Those of entries that are gone are not known after a start.
    pub(super) fn go_on_after(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }

    /// Writes entries whose keys are distinct, and publishes them; an older entry of the same key is erased. Chunks of
    /// at most the capacity. On an error none of them is published.
    pub(super) fn put(&mut self, drafts: &[Draft<'_>], now: u32) -> Result<(), StoreError> {
        if SEQUENCE_MAX - self.last_sequence < drafts.len() as u64 {
            return Err(StoreError::SequenceUsedUp { path: self.space.path.clone() });
        }
        self.begin()?;
        self.make_room(drafts.len() as u64, now)?;
        let slots = self.take_free(drafts.len());
        let records: Vec<Record> = drafts
            .iter()
            .zip(self.last_sequence + 1..)
            .map(|((record, row), sequence)| record.sealed(sequence, row))
            .collect();
        self.last_sequence += drafts.len() as u64;
        if let Err(error) = self.write(&slots, drafts, &records) {
            self.space.counters.write_errors.add(1);
            self.doomed.extend(&slots);
            // If this fails too, the slots stay doomed; the first error is the one to tell.
            let _ = self.erase();
            return Err(error);
        }
        self.publish(&slots, &records, now);
        self.erase()
    }

    /// Whether any namespace is bounded.
    pub(super) fn has_bounds(&self) -> bool {
        !self.quotas.is_empty()
    }

    /// Bounds a namespace from now on, or no more. The first time its entries are looked for, by reading all records.
    pub(super) fn bound(&mut self, namespace: u32, entries_max: Option<u64>) {
        let Some(entries_max) = entries_max else { return self.quotas.free(namespace) };
        let is_new = !self.quotas.has(namespace);
        self.quotas.bound(namespace, entries_max);
        if is_new {
            let map = &self.space.map;
            let of_it = self.space.live.iter().filter(|&slot| map.record(slot).namespace() == namespace);
            let mut slots: Vec<Slot> = of_it.collect();
            slots.sort_unstable_by_key(|&slot| map.record(slot).sequence());
            slots.into_iter().for_each(|slot| self.quotas.inserted(slot, map.record(slot)));
        }
    }

    /// Erases what a namespace has beyond its bound.
    pub(super) fn keep_bound(&mut self, namespace: u32) -> Result<(), StoreError> {
        let Self { space, quotas, .. } = self;
        let victims = quotas.choose(namespace, |slot| space.visited.clear(slot));
        if victims.is_empty() {
            return Ok(());
        }
        self.begin()?;
        self.space.counters.over_quota.add(victims.len());
        self.unpublish(&victims);
        self.erase()
    }

    /// How many entries one put can make room for: pinned ones stay where they are.
    pub(super) fn room_at_once(&self) -> usize {
        self.space.layout.capacity.saturating_sub(self.pinned).max(1) as usize
    }

    /// Takes keys out of the table and erases them. Answers how many there were.
    pub(super) fn remove(&mut self, keys: &[Key]) -> Result<usize, StoreError> {
        let mut slots: Vec<Slot> = keys.iter().filter_map(|key| self.space.find(key)).collect();
        slots.sort_unstable();
        slots.dedup();
        self.begin()?;
        self.space.counters.removed.add(slots.len());
        self.unpublish(&slots);
        self.erase()?;
        Ok(slots.len())
    }

    /// Zeroes the rows among some slots' that no record claims: those of entries that are gone. Answers how many were not zero yet.
    pub(super) fn wipe(&mut self, slots: Range<Slot>) -> Result<usize, StoreError> {
        self.begin()?;
        self.erase()?;
        let Self { space, disk, wrote, .. } = self;
        // A slot is free once its record is zero, and then nobody is in it.
        let is_left = |&slot: &Slot| {
            let is_free = !space.live.get(slot) && space.map.record(slot).is_free();
            is_free && space.map.row(slot).iter().any(|value| value.to_bits() != 0)
        };
        let left: Vec<Slot> = slots.filter(is_left).collect();
        let mut rest = left.as_slice();
        while let Some(&first) = rest.first() {
            let length = run_length(rest.iter().copied(), |slot| slot + 1);
            rest = &rest[length..];
            *wrote = true;
            let zeros = vec![0; length * space.layout.row_bytes()];
            if let Err(source) = disk.write_all_at(&zeros, space.layout.row_offset(first)) {
                space.counters.write_errors.add(1);
                return Err(StoreError::Io { operation: "overwrite rows in", path: space.path.clone(), source });
            }
        }
        Ok(left.len())
    }

    /// Erases what readers have found damaged.
    pub(super) fn clear_quarantine(&mut self) -> Result<(), StoreError> {
        let slots = std::mem::take(&mut *self.space.quarantined());
        // A slot may have been replaced since: its bit is clear then.
        let space = &self.space;
        let slots: Vec<Slot> =
            slots.into_iter().filter(|&slot| space.damaged.get(slot) && space.live.get(slot)).collect();
        if slots.is_empty() {
            return Ok(());
        }
        self.begin()?;
        self.unpublish(&slots);
        self.erase()
    }

    /// Erases expired entries, if any is due. Answers how many.
    pub(super) fn sweep_expired(&mut self, now: u32) -> Result<usize, StoreError> {
        if self.earliest_expiry > now {
            return Ok(0);
        }
        self.begin()?;
        let swept = self.drop_expired(now);
        self.erase()?;
        Ok(swept)
    }

    /// Keys that had tags or a payload and have none now: dropped since this was last asked, and not put again with any.
    pub(super) fn take_detached(&mut self) -> Vec<Key> {
        let mut keys = std::mem::take(&mut self.detached);
        let space = &self.space;
        keys.retain(|key| space.find(key).is_none_or(|slot| !space.map.record(slot).has_attachments()));
        keys
    }

    pub(super) fn figures(&self) -> Figures {
        let slots = self.freed.capacity() + self.doomed.capacity();
        Figures {
            memory_bytes: (slots * size_of::<Slot>() + self.rows.capacity()) as u64
                + self.eviction.memory_bytes()
                + self.quotas.memory_bytes(),
            pinned: self.pinned,
            dead: (self.freed.len() + self.doomed.len()) as u64,
            last_sequence: self.last_sequence,
        }
    }

    /// What the next session needs to know; nothing if slots are left that have to be erased first.
    pub(super) fn remembered(&mut self) -> Option<Remembered> {
        self.clear_quarantine().and_then(|()| self.erase()).ok()?;
        let Self { fresh, last_sequence, earliest_expiry, pinned, .. } = *self;
        Some(Remembered { fresh, last_sequence, earliest_expiry, pinned })
    }

    /// Whether bytes of the file may have changed since this was last asked.
    pub(super) fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote)
    }

    /// Whether this session has changed anything.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Before the first change: the table kept at the last close will no longer be right.
    fn begin(&mut self) -> Result<(), StoreError> {
        if !self.begun {
            let path = &self.space.path;
            snapshot::remove(&*self.space.files, path)
                .map_err(StoreError::io("remove the table kept beside", path))
                .inspect_err(|_| {
                    self.space.counters.write_errors.add(1);
                })?;
            self.begun = true;
        }
        Ok(())
    }

    fn free_count(&self) -> u64 {
        self.space.layout.capacity - u64::from(self.fresh) + self.freed.len() as u64
    }

    /// Makes sure that `count` slots are free: expired entries go first, then those that the policy chooses.
    fn make_room(&mut self, count: u64, now: u32) -> Result<(), StoreError> {
        self.erase()?;
        if self.free_count() >= count {
            return Ok(());
        }
        if self.earliest_expiry <= now {
            self.drop_expired(now);
        }
        let free = self.free_count() + self.doomed.len() as u64;
        if free < count {
            let sweep = SWEEP_ENTRIES.min(self.space.layout.capacity.div_ceil(SWEEP_ENTRIES));
            let victims = self.choose_victims((count - free).max(sweep).min(self.space.table.len()));
            self.space.counters.evicted.add(victims.len());
            self.unpublish(&victims);
            if free + (victims.len() as u64) < count {
                self.erase()?;
                return Err(StoreError::Full { path: self.space.path.clone(), pinned: self.pinned });
            }
        }
        self.erase()
    }

    /// One pass over all records; not before the next expiry is due, so at most one a second.
    fn drop_expired(&mut self, now: u32) -> usize {
        let mut earliest = u32::MAX;
        let mut expired = Vec::new();
        for slot in self.space.live.iter() {
            match self.space.map.record(slot).expires {
                0 => {}
                expires if expires <= now => expired.push(slot),
                expires => earliest = earliest.min(expires),
            }
        }
        self.earliest_expiry = earliest;
        self.space.counters.expired.add(expired.len());
        self.unpublish(&expired);
        expired.len()
    }

    fn choose_victims(&mut self, count: u64) -> Vec<Slot> {
        let Self { space, eviction, .. } = self;
        let mut victims = Vec::with_capacity(count as usize);
        let prefix = |slot| space.map.record(slot).key.prefix();
        eviction.choose(count as usize, |slot| space.visited.clear(slot), prefix, &mut victims);
        victims
    }

    /// Free slots in ascending order, used ones before fresh ones, so that the rows stay together.
    fn take_free(&mut self, count: usize) -> Vec<Slot> {
        assert!(self.free_count() >= count as u64);
        let mut slots = self.freed.split_off(self.freed.len().saturating_sub(count));
        let missing = (count - slots.len()) as Slot;
        slots.extend(self.fresh..self.fresh + missing);
        self.fresh += missing;
        slots.sort_unstable();
        slots
    }

    fn publish(&mut self, slots: &[Slot], records: &[Record], now: u32) {
        let space = Arc::clone(&self.space);
        for (slots, records) in slots.chunks(KEYS_AT_ONCE).zip(records.chunks(KEYS_AT_ONCE)) {
            records.iter().for_each(|record| space.table.prefetch(&record.key));
            for (&slot, record) in slots.iter().zip(records) {
                space.damaged.clear(slot);
                space.visited.clear(slot);
                space.verified.set(slot);
                let old = space.find(&record.key);
                self.set_live(slot, record);
                self.quotas.inserted(slot, record);
                if !record.is_pinned() {
                    self.eviction.inserted(slot, record.key.prefix());
                }
                // A reader finds the new entry or the old one, never neither.
                if !old.is_some_and(|old| space.table.replace(&record.key, old, slot)) {
                    space.table.insert(&record.key, slot);
                }
                self.tell_published(slot, record);
                if let Some(old) = old {
                    let replaced = space.map.record(old);
                    let counters = &space.counters;
                    if replaced.is_expired(now) {
                        counters.expired.add(1)
                    } else {
                        counters.replaced.add(1)
                    }
                    if replaced.has_attachments() {
                        self.detached.push(record.key);
                    }
                    self.set_dead(old, replaced.is_pinned());
                    self.doomed.push(old);
                }
            }
        }
    }

    fn unpublish(&mut self, slots: &[Slot]) {
        let space = Arc::clone(&self.space);
        for &slot in slots {
            let record = space.map.record(slot);
            if record.has_attachments() {
                self.detached.push(record.key);
            }
            if !space.table.remove(&record.key, slot) {
                // The key has changed on the medium since open.
                space.table.remove_slot(slot);
            }
            self.set_dead(slot, record.is_pinned());
            self.doomed.push(slot);
        }
    }

    /// Zeroes the records of doomed slots; then they are free.
    fn erase(&mut self) -> Result<(), StoreError> {
        if self.doomed.is_empty() {
            return Ok(());
        }
        let Self { space, disk, doomed, freed, .. } = self;
        self.wrote = true;
        space.readers.wait();
        doomed.sort_unstable();
        // From the end, so that what was erased can be cut off.
        while let Some(&last) = doomed.last() {
            let length = run_length(doomed.iter().rev().copied(), |slot| slot.wrapping_sub(1));
            let first = last + 1 - length as Slot;
            let zeros = vec![0; length * RECORD_BYTES as usize];
            if let Err(source) = disk.write_all_at(&zeros, space.layout.record_offset(first)) {
                space.counters.write_errors.add(1);
                return Err(StoreError::Io { operation: "erase entries in", path: space.path.clone(), source });
            }
            doomed.truncate(doomed.len() - length);
            for slot in first..=last {
                space.verified.clear(slot);
                space.damaged.clear(slot);
                freed.push(slot);
            }
        }
        Ok(())
    }

    fn set_live(&mut self, slot: Slot, record: &Record) {
        self.space.live.set(slot);
        self.pinned += u64::from(record.is_pinned());
        if record.expires != 0 {
            self.earliest_expiry = self.earliest_expiry.min(record.expires);
        }
    }

    fn set_dead(&mut self, slot: Slot, pinned: bool) {
        self.space.live.clear(slot);
        self.eviction.removed(slot);
        self.quotas.removed(slot);
        for watcher in &self.watchers {
            watcher.withdrawn(slot);
        }
        // What a record says may have changed on the medium: the count can be wrong then, but not below zero.
        self.pinned = self.pinned.saturating_sub(u64::from(pinned));
    }

    /// Rows, then records; neighbours with one write each.
    fn write(&mut self, slots: &[Slot], drafts: &[Draft<'_>], records: &[Record]) -> Result<(), StoreError> {
        let Self { space, disk, rows, .. } = self;
        self.wrote = true;
        let failed = |operation| StoreError::io(operation, &space.path);
        let mut runs = Vec::new();
        let mut from = 0;
        while from < slots.len() {
            let to = from + run_length(slots[from..].iter().copied(), |slot| slot + 1);
            runs.push(from..to);
            from = to;
        }
        for run in &runs {
            let offset = space.layout.row_offset(slots[run.start]);
            space.map.prepare(offset, run.len() * space.layout.row_bytes());
            let written = if let [(_, row)] = drafts[run.clone()] {
                disk.write_all_at(bytemuck::cast_slice(row), offset)
            } else {
                rows.clear();
                drafts[run.clone()].iter().for_each(|(_, row)| rows.extend_from_slice(bytemuck::cast_slice(row)));
                disk.write_all_at(rows, offset)
            };
            written.map_err(failed("write rows to"))?;
        }
        for run in runs {
            let (offset, records) = (space.layout.record_offset(slots[run.start]), &records[run]);
            space.map.prepare(offset, size_of_val(records));
            disk.write_all_at(bytemuck::cast_slice(records), offset).map_err(failed("write records to"))?;
        }
        Ok(())
    }
}

/// How many of the first slots follow each other.
fn run_length(slots: impl Iterator<Item = Slot>, next: impl Fn(Slot) -> Slot) -> usize {
    let mut expected = None;
    slots
        .take_while(|&slot| {
            let follows = expected.is_none_or(|expected| expected == slot);
            expected = Some(next(slot));
            follows
        })
        .count()
}
