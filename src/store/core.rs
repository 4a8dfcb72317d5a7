//! What a store is made of, shared with its own threads: the path of a change, and what is done in the background.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use half::f16;

use super::aliases::Aliases;
use super::config::{Durability, NewEntry, PAYLOAD_BYTES_MAX, Scrubbed};
use super::error::StoreError;
use super::header;
use super::info::Info;
use super::layout::Slot;
use super::record::{RECORD_BYTES, Record};
use super::side::{Attachment, Side};
use super::snapshot;
use super::space::Space;
use super::sync::{IntervalSync, Syncer};
use super::watch::Watcher;
use super::writer::{Draft, Figures, KeyMap, Writer};
use crate::domain::{Key, Namespace};

/// The most entries written and published at a time: bounds the buffers, and how long readers wait.
const PUT_ENTRIES_MAX: usize = 4096;
/// How many slots' entries a watcher is told of while a writer waits.
const TOLD_AT_ONCE: Slot = 1024;
/// The fewest entries for which a clean close leaves the table: fewer are read faster than it is.
const SNAPSHOT_ENTRIES_MIN: u64 = if cfg!(test) { 1 } else { 16_384 };

/// What the store's own threads need too.
pub(super) struct Core {
    pub(super) durability: Durability,
    pub(super) space: Arc<Space>,
    pub(super) file: File,
    pub(super) writer: Mutex<Writer>,
    /// The writer's figures, for those who must not wait for a write.
    pub(super) figures: Mutex<Figures>,
    pub(super) syncer: Arc<Syncer>,
    /// Syncs for entries that ask for more than the store does by itself. Begins when the first one does.
    pub(super) on_demand: Mutex<Option<IntervalSync>>,
    pub(super) aliases: Aliases,
    pub(super) side: Arc<Side>,
    /// Where the scrubber stands.
    pub(super) scrubbing: Mutex<Slot>,
    pub(super) opened_clean: bool,
    pub(super) put_aside: Vec<String>,
}

impl Core {
    pub(super) fn put_many(&self, entries: &[NewEntry<'_>], now: u32) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.check(entries)?;
        self.check_durability()?;
        self.write(entries, now)?;
        self.aliases.add(entries.iter().filter_map(|entry| entry.token_key.map(|token_key| (token_key, entry.key))));
        let asked = entries.iter().filter_map(|entry| entry.durability);
        match asked.fold(self.durability, Durability::stronger) {
            Durability::Process => Ok(()),
            Durability::Interval(interval) => self.sync_every(interval),
            Durability::Always => self.syncer.settle(),
        }
    }

    /// Has what is written synced that often from now on, if it is not by the store's own durability.
    fn sync_every(&self, interval: Duration) -> Result<(), StoreError> {
        let mut on_demand = self.on_demand.lock().unwrap_or_else(PoisonError::into_inner);
        if self.durability == Durability::Process && on_demand.is_none() {
            *on_demand = Some(IntervalSync::start(Arc::clone(&self.syncer), interval)?);
        }
        Ok(())
    }

    pub(super) fn remove_many(&self, keys: &[Key]) -> Result<usize, StoreError> {
        let removed = self.change(|writer| writer.remove(keys))?;
        self.make_durable()?;
        Ok(removed)
    }

    /// Erases those of the keys' entries whose records fit.
    pub(super) fn remove_where(&self, keys: &[Key], fits: impl Fn(&Record) -> bool) -> Result<usize, StoreError> {
        let removed = self.change(|writer| {
            let fits = |key: &&Key| self.space.find(key).is_some_and(|slot| fits(self.space.map.record(slot)));
            let keys: Vec<Key> = keys.iter().filter(fits).copied().collect();
            if keys.is_empty() { Ok(0) } else { writer.remove(&keys) }
        })?;
        self.make_durable()?;
        Ok(removed)
    }

    pub(super) fn mark_stale(&self, keys: &[Key], now: u32) -> Result<usize, StoreError> {
        self.check_durability()?;
        let mut marked = 0;
        let mut rest = keys;
        while !rest.is_empty() {
            marked += self.change(|writer| {
                let keys;
                (keys, rest) = rest.split_at(writer.room_at_once().min(PUT_ENTRIES_MAX).min(rest.len()));
                // As new entries that replace the old: at no moment is there neither, whatever breaks.
                let mut places = KeyMap::default();
                let rows: Vec<(Record, Vec<f16>)> = keys
                    .iter()
                    .filter(|key| places.insert(**key, ()).is_none())
                    .filter_map(|key| {
                        let slot = self.space.find(key)?;
                        let record = *self.space.map.record(slot);
                        let row = self.space.map.row(slot).to_vec();
                        // Sealed anew only what is whole.
                        let is_gone = record.is_expired(now) || self.space.condemned.has(&record);
                        let fit = record.is_intact(&row) && !is_gone && !record.entry().stale;
                        fit.then(|| (record.stale(), row))
                    })
                    .collect();
                let drafts: Vec<Draft<'_>> = rows.iter().map(|(record, row)| (*record, row.as_slice())).collect();
                if !drafts.is_empty() {
                    writer.put(&drafts, now)?;
                }
                Ok(drafts.len())
            })?;
        }
        self.make_durable()?;
        Ok(marked)
    }

    pub(super) fn sweep_expired(&self, now: u32) -> Result<usize, StoreError> {
        self.change(|writer| writer.sweep_expired(now))
    }

    /// Checks the next entries' checksums.
    pub(super) fn scrub(&self, entries_max: usize) -> Scrubbed {
        // The place is a number: a panic elsewhere leaves it whole.
        let mut place = self.scrubbing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scrubbed = Scrubbed::default();
        let end = self.space.layout.slots().end;
        while scrubbed.checked < entries_max && *place < end {
            if self.space.live.get(*place) {
                scrubbed.checked += 1;
                scrubbed.damaged += usize::from(self.space.scrub(*place));
            }
            *place += 1;
        }
        self.space.counters.scrubbed.add(scrubbed.checked);
        if *place == end {
            *place = 0;
            scrubbed.finished = true;
            self.space.counters.scrub_passes.add(1);
        }
        scrubbed
    }

    /// Tells a watcher of what there is, some slots at a time, and of every change from now on: a change to what has been told
    /// is told as well, one to what has not is told twice.
    pub(super) fn watch(&self, watcher: Arc<dyn Watcher>, now: u32) {
        self.writer().watch(Arc::clone(&watcher));
        let end = self.space.layout.slots().end;
        for first in (0..end).step_by(TOLD_AT_ONCE as usize) {
            // Nobody waits for longer than this many take.
            self.writer().tell(&*watcher, first..end.min(first.saturating_add(TOLD_AT_ONCE)), now);
        }
    }

    /// Erases what was found damaged.
    pub(super) fn erase_damaged(&self) -> Result<(), StoreError> {
        self.change(|_| Ok(()))
    }

    /// What a key's record says of it; no for one that has none.
    pub(super) fn record_says(&self, key: &Key, says: impl Fn(&Record) -> bool) -> bool {
        let reading = self.space.read();
        reading.find(key).is_some_and(|slot| says(self.space.map.record(slot)))
    }

    pub(super) fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn entry_bytes(&self) -> u64 {
        RECORD_BYTES + self.space.layout.row_bytes() as u64
    }

    pub(super) fn info(&self) -> Info {
        let counters = &self.space.counters;
        let kept_table = std::fs::metadata(snapshot::path_for(&self.space.path));
        let occupied = |metadata: &std::fs::Metadata| metadata.blocks() * 512;
        let side = std::fs::metadata(&self.side.path);
        let side_memory = Side::memory_bytes(side.as_ref().map_or(0, occupied));
        let sizes = [self.file.metadata(), side, kept_table];
        let sum = |bytes: fn(&std::fs::Metadata) -> u64| sizes.iter().flatten().map(bytes).sum();
        let lost_pages = match self.space.map.faults() {
            0 => None,
            pages => Some(format!(
                "{} was cut short or cannot be read ({pages} times since the start): what it held there is lost",
                self.space.path.display()
            )),
        };
        let degraded: Vec<String> =
            [self.syncer.failure(), self.aliases.failure(), lost_pages].into_iter().flatten().collect();
        let figures = self.figures();
        let entries = self.space.table.len();
        let entry_bytes = self.entry_bytes();
        Info {
            format_version: header::FORMAT_VERSION,
            dims: self.space.layout.dims,
            entries,
            capacity_entries: self.space.layout.capacity,
            live_bytes: entries * entry_bytes,
            dead_bytes: figures.dead * entry_bytes,
            allocated_bytes: sum(occupied),
            apparent_bytes: sum(std::fs::Metadata::len),
            memory_bytes: self.space.memory_bytes() + figures.memory_bytes + side_memory + self.aliases.memory_bytes(),
            pinned: figures.pinned,
            quarantined: counters.quarantined.get(),
            evicted: counters.evicted.get(),
            over_quota: counters.over_quota.get(),
            expired: counters.expired.get(),
            removed: counters.removed.get(),
            replaced: counters.replaced.get(),
            write_errors: counters.write_errors.get(),
            torn_reads: counters.torn_reads.get(),
            lost_pages: self.space.map.faults(),
            scrubbed: counters.scrubbed.get(),
            scrub_passes: counters.scrub_passes.get(),
            syncs: self.syncer.syncs.get(),
            token_keys_pending: self.aliases.pending() as u64,
            opened_clean: self.opened_clean,
            degraded: (!degraded.is_empty()).then(|| degraded.join("; ")),
            put_aside: self.put_aside.clone(),
        }
    }

    /// Leaves the table for the next open. What stands in the way of that stands in the way of nothing else.
    pub(super) fn leave_snapshot(&self) {
        // A writer that has panicked left nothing that could be relied on.
        let Ok(mut writer) = self.writer.lock() else { return };
        let still_right = self.opened_clean && !writer.has_begun();
        if still_right || self.space.table.len() < SNAPSHOT_ENTRIES_MIN || self.space.map.faults() > 0 {
            return;
        }
        let Some(remembered) = writer.remembered() else { return };
        self.wrote(&mut writer);
        if self.syncer.settle().is_err() {
            return;
        }
        if let Err(error) = snapshot::write(&self.space, &self.file, remembered) {
            tracing::warn!(path = %self.space.path.display(), %error, "the table is not kept: the next start reads the slots");
        }
    }

    /// Changes the space, after what readers have found damaged is erased.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Writer) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut writer = self.writer();
        self.mend()?;
        let result = writer.clear_quarantine().and_then(|()| change(&mut writer));
        self.wrote(&mut writer);
        result
    }

    /// What follows every change, successful or not, before the next one begins.
    fn wrote(&self, writer: &mut Writer) {
        if writer.take_wrote() {
            self.syncer.wrote();
        }
        self.aliases.detach(writer.take_detached());
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = writer.figures();
    }

    /// With durability `Always`: an error if nothing can be made durable any more.
    fn check_durability(&self) -> Result<(), StoreError> {
        if self.durability == Durability::Always { self.syncer.check() } else { Ok(()) }
    }

    fn make_durable(&self) -> Result<(), StoreError> {
        if self.durability == Durability::Always { self.syncer.settle() } else { Ok(()) }
    }

    fn check(&self, entries: &[NewEntry<'_>]) -> Result<(), StoreError> {
        let expected = self.space.layout.dims;
        for (index, entry) in entries.iter().enumerate() {
            if entry.unit.len() != expected {
                return Err(StoreError::RowLength { index, found: entry.unit.len(), expected });
            }
            // The largest magnitude's bits, without an early end, so that many values are looked at together.
            let largest =
                entry.unit.iter().fold(0, |largest, value| i16::max(largest, (value.to_bits() & 0x7fff) as i16));
            let finite = largest < f16::INFINITY.to_bits() as i16;
            if !finite || !entry.norm.is_finite() {
                return Err(StoreError::NotFinite { index });
            }
            if let Some(bytes) = entry.payload.map(str::len).filter(|&bytes| bytes > PAYLOAD_BYTES_MAX) {
                return Err(StoreError::PayloadTooLong { index, bytes, bytes_max: PAYLOAD_BYTES_MAX });
            }
        }
        Ok(())
    }

    fn write(&self, entries: &[NewEntry<'_>], now: u32) -> Result<(), StoreError> {
        // Names before rows: an entry on disk never has a namespace, tags or a payload that are not.
        let numbers = self.namespace_numbers(entries)?;
        let mut writer = self.writer();
        self.mend()?;
        writer.clear_quarantine()?;
        self.end_condemned(&mut writer, entries)?;
        self.attach(entries, now)?;
        let mut bounds: BTreeMap<u32, Option<u64>> = BTreeMap::new();
        if writer.has_bounds() || entries.iter().any(|entry| entry.quota.is_some()) {
            bounds.extend(numbers.iter().copied().zip(entries.iter().map(|entry| entry.quota)));
            bounds.iter().for_each(|(&namespace, &quota)| writer.bound(namespace, quota));
        }
        let drafts = self.drafts(entries, &numbers, now);
        if drafts.is_empty() {
            return Ok(());
        }
        let mut rest = drafts.as_slice();
        let mut result = Ok(());
        while !rest.is_empty() && result.is_ok() {
            let chunk;
            (chunk, rest) = rest.split_at(writer.room_at_once().min(PUT_ENTRIES_MAX).min(rest.len()));
            result = writer.put(chunk, now);
        }
        for (&namespace, _) in bounds.iter().filter(|(_, quota)| quota.is_some()) {
            result = result.and(writer.keep_bound(namespace));
        }
        self.wrote(&mut writer);
        result
    }

    /// Each entry's namespace by number.
    fn namespace_numbers(&self, entries: &[NewEntry<'_>]) -> Result<Vec<u32>, StoreError> {
        let mut numbers = Vec::with_capacity(entries.len());
        let mut last: Option<(&Namespace, u32)> = None;
        for entry in entries {
            let number = match last {
                Some((namespace, number)) if namespace == entry.namespace => number,
                _ => self.side.namespace_number(entry.namespace)?,
            };
            last = Some((entry.namespace, number));
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// Erases what is condemned under the keys of entries to come: an entry that is there would be taken to share its tags and its payload
    /// with the one that comes.
    fn end_condemned(&self, writer: &mut Writer, entries: &[NewEntry<'_>]) -> Result<(), StoreError> {
        let Space { condemned, map, .. } = &*self.space;
        if !condemned.any() {
            return Ok(());
        }
        let is_condemned = |key: &Key| self.space.find(key).is_some_and(|slot| condemned.has(map.record(slot)));
        let keys: Vec<Key> = entries.iter().map(|entry| entry.key).filter(is_condemned).collect();
        if keys.is_empty() { Ok(()) } else { writer.remove(&keys).map(drop) }
    }

    /// Writes entries' tags and payloads to the side store.
    fn attach(&self, entries: &[NewEntry<'_>], now: u32) -> Result<(), StoreError> {
        let attached = |entry: &&NewEntry<'_>| !entry.tags.is_empty() || entry.payload.is_some();
        if !entries.iter().any(|entry| attached(&entry)) {
            return Ok(());
        }
        let mut seen: HashMap<Key, ()> = HashMap::new();
        let attachments: Vec<Attachment<'_>> = entries
            .iter()
            .filter(attached)
            .map(|entry| {
                let again = seen.insert(entry.key, ()).is_some();
                let stored = self.space.find(&entry.key).map(|slot| self.space.map.record(slot));
                let keep = again || stored.is_some_and(|stored| stored.has_attachments() && !stored.is_expired(now));
                Attachment { key: entry.key, tags: entry.tags, payload: entry.payload, keep }
            })
            .collect();
        self.side.attach(&attachments, || self.aliases.keep_attached(attachments.iter().map(|attached| attached.key)))
    }

    /// What of the entries has to be written: one record a key.
    fn drafts<'a>(&self, entries: &[NewEntry<'a>], numbers: &[u32], now: u32) -> Vec<Draft<'a>> {
        let Space { table, map, .. } = &*self.space;
        let mut drafts: Vec<Draft<'a>> = Vec::with_capacity(entries.len());
        let mut places: KeyMap<usize> = KeyMap::with_capacity_and_hasher(entries.len(), Default::default());
        entries.iter().for_each(|entry| table.prefetch(&entry.key));
        let reading = self.space.read();
        for (entry, &namespace) in entries.iter().zip(numbers) {
            let mut record = Record::new(entry, namespace, now);
            if let Some(&place) = places.get(&entry.key) {
                let (earlier, _) = drafts[place];
                if entry.replace {
                    record.take_attachments_of(&earlier);
                    drafts[place] = (record, entry.unit);
                } else {
                    drafts[place].0.take_attachments_of(&record);
                }
                continue;
            }
            if let Some(slot) = self.space.find(&entry.key) {
                let stored = map.record(slot);
                // A valid entry stays, unless it is to be replaced or has to be marked as having something beside it.
                if !entry.replace && stored.has_attachments_of(&record) && reading.is_valid(slot, now) {
                    continue;
                }
                if !stored.is_expired(now) {
                    record.take_attachments_of(stored);
                }
            }
            places.insert(entry.key, drafts.len());
            drafts.push((record, entry.unit));
        }
        drafts
    }

    /// Before the writer writes: see [`super::map::Map::mend`].
    fn mend(&self) -> Result<(), StoreError> {
        let Space { map, path, model, .. } = &*self.space;
        map.mend(&self.file, model).map_err(StoreError::io("mend", path)).inspect_err(|_| {
            self.space.counters.write_errors.add(1);
        })
    }

    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while writing is a bug of ours. What it leaves is what a crash leaves, less the recovery: slots that
        // are neither free nor live. They are lost until the next open, and nothing wrong is served.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
