//! The one writer of a space: which slots are free, in what order bytes reach the file, and who makes room.
//!
//! ```text
//! free ──rows──records──► written, not in the table ──publish──► live ──unpublish──► doomed ──erase──► free
//!                                    └─ a write failed ─────────────────────────────────►┘
//! ```
//!
//! Only *live* slots are in the table, so only they are read. A doomed slot becomes free when its record is zero on
//! disk, not before: a row is never overwritten under a record that still claims it. If erasing fails the slot stays
//! doomed, and the next write tries again.

use half::f16;

use super::disk::Disk;
use super::error::StoreError;
use super::layout::Slot;
use super::record::{RECORD_BYTES, Record, SEQUENCE_MAX};
use super::space::Space;
use crate::domain::Key;

/// How many entries make room at a time: neighbours are erased, and later filled, with one write.
const SWEEP_ENTRIES: u64 = 16;

/// The state that only writes need.
pub(super) struct Writer {
    live: Vec<bool>,
    live_count: u64,
    /// Slots from here on were never used.
    fresh: Slot,
    freed: Vec<Slot>,
    doomed: Vec<Slot>,
    /// Where the clock's hand stands.
    hand: Slot,
    last_sequence: u64,
    /// No live entry expires before this.
    earliest_expiry: u32,
    /// Keys of tagged entries that were dropped: their tags are still in the side store.
    untagged: Vec<Key>,
}

/// A record without its seal, and the row it will be sealed over.
pub(super) type Draft<'a> = (Record, &'a [f16]);

impl Writer {
    /// Reads the slot region of a file just opened, and fills the table with what is live in it. Rows are not read:
    /// checksums are checked when an entry is first served. The exception is a sequence number of the upper half of
    /// its range, which a flipped bit is likelier to explain than 2^39 writes; believed, it would use the numbers up.
    pub(super) fn recover(space: &Space) -> Self {
        let capacity = space.layout.capacity;
        let mut writer = Self {
            live: vec![false; capacity as usize],
            live_count: 0,
            fresh: 0,
            freed: Vec::new(),
            doomed: Vec::new(),
            hand: 0,
            last_sequence: 0,
            earliest_expiry: u32::MAX,
            untagged: Vec::new(),
        };
        let mut table = space.table_mut();
        for slot in space.layout.slots() {
            let record = space.map.record(slot);
            if record.is_free() {
                continue;
            }
            writer.freed.extend(writer.fresh..slot);
            writer.fresh = slot + 1;
            let implausible = record.sequence() > SEQUENCE_MAX / 2 && !record.is_intact(space.map.row(slot));
            if !record.is_live() || implausible {
                space.counters.quarantined.add(1);
                writer.doomed.push(slot);
                continue;
            }
            if let Some(other) = space.find(&table, &record.key) {
                // A crash came between writing the new entry and erasing the old.
                if space.map.record(other).sequence() >= record.sequence() {
                    writer.doomed.push(slot);
                    continue;
                }
                table.remove(&record.key, other);
                writer.set_dead(other);
                writer.doomed.push(other);
            }
            table.insert(&record.key, slot);
            writer.set_live(slot, record);
            writer.last_sequence = writer.last_sequence.max(record.sequence());
        }
        writer
    }

    /// Writes entries whose keys are distinct, and publishes them; an older entry of the same key is erased. Chunks of
    /// at most the capacity. On an error none of them is published.
    pub(super) fn put(
        &mut self,
        space: &Space,
        disk: &dyn Disk,
        drafts: &[Draft<'_>],
        now: u32,
    ) -> Result<(), StoreError> {
        if SEQUENCE_MAX - self.last_sequence < drafts.len() as u64 {
            return Err(StoreError::SequenceUsedUp { path: space.path.clone() });
        }
        self.make_room(space, disk, drafts.len() as u64, now)?;
        let slots = self.take_free(space, drafts.len());
        let records: Vec<Record> = drafts
            .iter()
            .zip(self.last_sequence + 1..)
            .map(|((record, row), sequence)| record.sealed(sequence, row))
            .collect();
        self.last_sequence += drafts.len() as u64;
        if let Err(error) = write(space, disk, &slots, drafts, &records) {
            space.counters.write_errors.add(1);
            self.doomed.extend(&slots);
            // If this fails too, the slots stay doomed; the first error is the one to tell.
            let _ = self.erase(space, disk);
            return Err(error);
        }
        self.publish(space, &slots, &records, now);
        self.erase(space, disk)
    }

    /// Takes keys out of the table and erases them. Answers how many there were.
    pub(super) fn remove(&mut self, space: &Space, disk: &dyn Disk, keys: &[Key]) -> Result<usize, StoreError> {
        let mut slots: Vec<Slot> = {
            let table = space.table();
            keys.iter().filter_map(|key| space.find(&table, key)).collect()
        };
        slots.sort_unstable();
        slots.dedup();
        self.unpublish(space, &slots);
        self.erase(space, disk)?;
        Ok(slots.len())
    }

    /// Erases what readers have found damaged.
    pub(super) fn clear_quarantine(&mut self, space: &Space, disk: &dyn Disk) -> Result<(), StoreError> {
        let slots = std::mem::take(&mut *space.quarantined());
        // A slot may have been replaced since: its bit is clear then.
        let slots: Vec<Slot> =
            slots.into_iter().filter(|&slot| space.damaged.get(slot) && self.live[slot as usize]).collect();
        self.unpublish(space, &slots);
        self.erase(space, disk)
    }

    /// Keys of tagged entries dropped since this was last asked, and not put again.
    pub(super) fn take_untagged(&mut self, space: &Space) -> Vec<Key> {
        let mut keys = std::mem::take(&mut self.untagged);
        if !keys.is_empty() {
            let table = space.table();
            keys.retain(|key| space.find(&table, key).is_none());
        }
        keys
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (self.live.capacity() + (self.freed.capacity() + self.doomed.capacity()) * size_of::<Slot>()) as u64
    }

    /// Every live slot.
    pub(super) fn live_slots(&self) -> impl Iterator<Item = Slot> {
        self.live.iter().zip(0..).filter_map(|(&live, slot)| live.then_some(slot))
    }

    fn free_count(&self, space: &Space) -> u64 {
        space.layout.capacity - u64::from(self.fresh) + self.freed.len() as u64
    }

    /// Makes sure that `count` slots are free: expired entries go first, then those not read since the hand last came by.
    fn make_room(&mut self, space: &Space, disk: &dyn Disk, count: u64, now: u32) -> Result<(), StoreError> {
        self.erase(space, disk)?;
        if self.free_count(space) >= count {
            return Ok(());
        }
        if self.earliest_expiry <= now {
            self.drop_expired(space, now);
        }
        let free = self.free_count(space) + self.doomed.len() as u64;
        if free < count {
            let sweep = SWEEP_ENTRIES.min(space.layout.capacity.div_ceil(SWEEP_ENTRIES));
            let victims = self.choose_victims(space, (count - free).max(sweep).min(self.live_count));
            space.counters.evicted.add(victims.len());
            self.unpublish(space, &victims);
        }
        self.erase(space, disk)
    }

    /// One pass over all records; not before the next expiry is due, so at most one a second.
    fn drop_expired(&mut self, space: &Space, now: u32) {
        let mut earliest = u32::MAX;
        let mut expired = Vec::new();
        for slot in self.live_slots() {
            match space.map.record(slot).expires {
                0 => {}
                expires if expires <= now => expired.push(slot),
                expires => earliest = earliest.min(expires),
            }
        }
        self.earliest_expiry = earliest;
        space.counters.expired.add(expired.len());
        self.unpublish(space, &expired);
    }

    /// CLOCK: the hand goes round; an entry read since it last came by gets another round, the others go.
    fn choose_victims(&mut self, space: &Space, count: u64) -> Vec<Slot> {
        let mut victims = Vec::with_capacity(count as usize);
        // Twice round finds everything: the first round clears every bit. Readers may set some again meanwhile, so the
        // third takes what comes.
        let capacity = space.layout.slots().end;
        for step in 0..3 * u64::from(capacity) {
            if victims.len() as u64 == count {
                break;
            }
            let slot = self.hand;
            self.hand = (self.hand + 1) % capacity;
            let last_round = step >= 2 * u64::from(capacity);
            if self.live[slot as usize] && (!space.visited.clear(slot) || last_round) {
                // Marked dead at once so that a second round does not choose it again.
                self.set_dead(slot);
                victims.push(slot);
            }
        }
        victims
    }

    /// Free slots in ascending order, used ones before fresh ones, so that the rows stay together.
    fn take_free(&mut self, space: &Space, count: usize) -> Vec<Slot> {
        debug_assert!(self.free_count(space) >= count as u64);
        let mut slots = self.freed.split_off(self.freed.len().saturating_sub(count));
        let missing = (count - slots.len()) as Slot;
        slots.extend(self.fresh..self.fresh + missing);
        self.fresh += missing;
        slots.sort_unstable();
        slots
    }

    fn publish(&mut self, space: &Space, slots: &[Slot], records: &[Record], now: u32) {
        let mut table = space.table_mut();
        for (&slot, record) in slots.iter().zip(records) {
            space.damaged.clear(slot);
            space.visited.clear(slot);
            space.verified.set(slot);
            if let Some(old) = space.find(&table, &record.key) {
                space.counters.expired.add(usize::from(space.map.record(old).is_expired(now)));
                table.remove(&record.key, old);
                self.set_dead(old);
                self.doomed.push(old);
            }
            table.insert(&record.key, slot);
            self.set_live(slot, record);
        }
    }

    fn unpublish(&mut self, space: &Space, slots: &[Slot]) {
        if slots.is_empty() {
            return;
        }
        let mut table = space.table_mut();
        for &slot in slots {
            let record = space.map.record(slot);
            if record.is_tagged() {
                self.untagged.push(record.key);
            }
            if !table.remove(&record.key, slot) {
                // The key has changed on the medium since open.
                table.remove_slot(slot);
            }
            self.set_dead(slot);
            self.doomed.push(slot);
        }
    }

    /// Zeroes the records of doomed slots; then they are free.
    fn erase(&mut self, space: &Space, disk: &dyn Disk) -> Result<(), StoreError> {
        self.doomed.sort_unstable();
        // From the end, so that what was erased can be cut off.
        while let Some(&last) = self.doomed.last() {
            let length = run_length(self.doomed.iter().rev().copied(), |slot| slot.wrapping_sub(1));
            let first = last + 1 - length as Slot;
            let zeros = vec![0; length * RECORD_BYTES as usize];
            if let Err(source) = disk.write_all_at(&zeros, space.layout.record_offset(first)) {
                space.counters.write_errors.add(1);
                return Err(StoreError::Io { operation: "erase entries in", path: space.path.clone(), source });
            }
            self.doomed.truncate(self.doomed.len() - length);
            for slot in first..=last {
                space.verified.clear(slot);
                space.damaged.clear(slot);
                self.freed.push(slot);
            }
        }
        Ok(())
    }

    fn set_live(&mut self, slot: Slot, record: &Record) {
        self.live_count += u64::from(!self.live[slot as usize]);
        self.live[slot as usize] = true;
        if record.expires != 0 {
            self.earliest_expiry = self.earliest_expiry.min(record.expires);
        }
    }

    fn set_dead(&mut self, slot: Slot) {
        self.live_count -= u64::from(self.live[slot as usize]);
        self.live[slot as usize] = false;
    }
}

/// Rows, then records; neighbours with one write each.
fn write(
    space: &Space,
    disk: &dyn Disk,
    slots: &[Slot],
    drafts: &[Draft<'_>],
    records: &[Record],
) -> Result<(), StoreError> {
    let failed = |operation| StoreError::io(operation, &space.path);
    let mut rows = Vec::new();
    let mut from = 0;
    let mut runs = Vec::new();
    while from < slots.len() {
        let to = from + run_length(slots[from..].iter().copied(), |slot| slot + 1);
        runs.push(from..to);
        from = to;
    }
    for run in &runs {
        rows.clear();
        drafts[run.clone()].iter().for_each(|(_, row)| rows.extend_from_slice(bytemuck::cast_slice(row)));
        disk.write_all_at(&rows, space.layout.row_offset(slots[run.start])).map_err(failed("write rows to"))?;
    }
    for run in runs {
        let offset = space.layout.record_offset(slots[run.start]);
        disk.write_all_at(bytemuck::cast_slice(&records[run]), offset).map_err(failed("write records to"))?;
    }
    Ok(())
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
