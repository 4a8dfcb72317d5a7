//! Embeddings on disk, read through a memory map: one file per model version, and a small redb file beside them.
//!
//! Promises: a vector that is served is bit for bit the one that was put under that key; a put that has returned
//! survives what its [`Durability`] says; memory and disk are bounded by the capacity; whatever the files hold, opening
//! them ends in a store or in an error with a name. Losing an entry is allowed (it costs a recomputation), a wrong
//! vector is not.
//!
//! Never: a panic on what a file holds, a write through the map, a second writer in a folder, a sync tried again after
//! one has failed. `FORMAT.md` beside this file describes every byte.
//!
//! ```text
//! Store ─┬─ Space    table, map: get_many, contains_many        many readers
//!        ├─ Writer   slots, order of writes, eviction           one at a time
//!        ├─ Syncer   shared syncs, the latch                    whoever waits
//!        ├─ Side     redb: namespaces, tags                     before a row
//!        └─ Aliases  redb: token keys                           behind the answer
//! ```

mod aliases;
mod bits;
mod config;
mod disk;
mod error;
mod file;
mod header;
mod info;
mod layout;
mod lock;
mod map;
mod record;
mod side;
mod space;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::f16;

pub use config::{Config, Durability, Entry, NewEntry};
pub use error::StoreError;
pub use info::Info;

use self::aliases::Aliases;
use self::disk::Disk;
use self::layout::Layout;
use self::lock::FolderLock;
use self::map::Map;
use self::record::Record;
use self::side::Side;
use self::space::Space;
use self::sync::{IntervalSync, Syncer};
use self::writer::{Draft, Writer};
use crate::domain::{Key, ModelVersion, TokenKey};

/// The most entries written and published at a time: bounds the buffers, and how long readers wait.
const PUT_ENTRIES_MAX: usize = 4096;

/// One model's embeddings in a folder. Shared by reference between threads; reads never wait for a disk write.
pub struct Store {
    durability: Durability,
    space: Arc<Space>,
    disk: Arc<dyn Disk>,
    file: File,
    writer: Mutex<Writer>,
    /// The writer's memory, for `info`, which must not wait for a write.
    writer_bytes: AtomicU64,
    syncer: Arc<Syncer>,
    put_aside: Vec<String>,
    // Fields are dropped in this order: threads end first, the lock goes last.
    _interval: Option<IntervalSync>,
    aliases: Aliases,
    side: Arc<Side>,
    _lock: FolderLock,
}

impl Store {
    /// Opens the folder, making it and what belongs in it if need be. The slot region is read (64 bytes an entry),
    /// the rows are not.
    ///
    /// # Errors
    /// When another process has the folder, the file is of a newer format or another model, the configuration is
    /// impossible, or the system refuses. A damaged file is put aside instead: see [`Info::put_aside`].
    pub fn open(folder: &Path, model: &ModelVersion, dims: usize, config: &Config) -> Result<Self, StoreError> {
        Self::open_on(folder, model, dims, config, |file| Arc::new(file))
    }

    /// As `open`, with the writes and syncs of the space's file going through `disk`.
    fn open_on(
        folder: &Path,
        model: &ModelVersion,
        dims: usize,
        config: &Config,
        disk: impl FnOnce(File) -> Arc<dyn Disk>,
    ) -> Result<Self, StoreError> {
        let layout = Layout::new(dims, config.capacity_entries)?;
        std::fs::create_dir_all(folder).map_err(StoreError::io("create the folder", folder))?;
        let lock = FolderLock::take(folder)?;
        let opened = file::open(folder, model, &layout)?;
        let path = opened.path;
        let map = Map::new(&opened.file, layout).map_err(StoreError::io("map", &path))?;
        let space = Arc::new(Space::new(path.clone(), layout, map));
        space.counters.quarantined.add(opened.damaged);
        let writer = Writer::recover(&space);

        let name = file::short_name(model);
        let (side, side_note) = Side::open(folder, &name)?;
        let side = Arc::new(side);
        reserve_namespaces(&space, &writer, &side);
        let shared = Arc::clone(&space);
        let is_live = Box::new(move |key: &Key| shared.find(&shared.table(), key).is_some());
        let aliases = Aliases::start(Arc::clone(&side), &name, 2 * layout.capacity + 1024, is_live)?;

        let file = opened.file.try_clone().map_err(StoreError::io("open", &path))?;
        let disk = disk(opened.file);
        let syncer = Arc::new(Syncer::new(Arc::clone(&disk), &path));
        let interval = match config.durability {
            Durability::Interval(interval) => Some(IntervalSync::start(Arc::clone(&syncer), interval)?),
            Durability::Process | Durability::Always => None,
        };
        Ok(Self {
            durability: config.durability,
            space,
            disk,
            file,
            writer_bytes: AtomicU64::new(writer.memory_bytes()),
            writer: Mutex::new(writer),
            syncer,
            put_aside: opened.put_aside.into_iter().chain(side_note).collect(),
            _interval: interval,
            aliases,
            side,
            _lock: lock,
        })
    }

    /// Shows each live, unexpired, intact entry with its row, by the index of its key. `now` is in Unix seconds.
    ///
    /// `found` runs under the readers' lock: it must be quick, and must not call the store.
    pub fn get_many(&self, keys: &[Key], now: u32, found: impl FnMut(usize, Entry, &[f16])) {
        self.space.visit(keys, now, found);
    }

    /// The facts of each key's entry, `None` for those that `get_many` would not show.
    pub fn contains_many(&self, keys: &[Key], now: u32) -> Vec<Option<Entry>> {
        let mut entries = vec![None; keys.len()];
        self.space.visit(keys, now, |index, entry, _| entries[index] = Some(entry));
        entries
    }

    /// Keeps entries. A key that has a valid entry keeps it unless `replace` is set; of a key given twice, the first
    /// stays, or the last with `replace`. Returns when the entries are as durable as configured. Tags add up.
    ///
    /// # Errors
    /// When a row has the wrong length or a value that is not finite (nothing is written then), or a write or sync
    /// fails (some may have been written; none is wrong).
    pub fn put_many(&self, entries: &[NewEntry<'_>], now: u32) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.check(entries)?;
        let always = self.durability == Durability::Always;
        if always {
            self.syncer.check()?;
        }
        self.write(entries, now)?;
        self.aliases.add(entries.iter().filter_map(|entry| entry.token_key.map(|token_key| (token_key, entry.key))));
        if always { self.syncer.settle() } else { Ok(()) }
    }

    /// Erases entries. Answers how many of the keys there were.
    ///
    /// # Errors
    /// When a write or sync fails; the entries are no longer served then, but may come back at the next open.
    pub fn remove_many(&self, keys: &[Key]) -> Result<usize, StoreError> {
        let result = {
            let mut writer = self.writer();
            let result = writer
                .clear_quarantine(&self.space, &*self.disk)
                .and_then(|()| writer.remove(&self.space, &*self.disk, keys));
            self.wrote(&mut writer);
            result
        };
        let removed = result?;
        if self.durability == Durability::Always {
            self.syncer.settle()?;
        }
        Ok(removed)
    }

    /// The key that a text of these tokens was put under. The entry may be gone.
    #[must_use]
    pub fn find_by_tokens(&self, key: &TokenKey) -> Option<Key> {
        self.aliases.find(key)
    }

    /// The tags of a key's entry, in order; none if it has no entry.
    #[must_use]
    pub fn tags(&self, key: &Key) -> Vec<String> {
        let tagged = {
            let table = self.space.table();
            self.space.find(&table, key).is_some_and(|slot| self.space.map.record(slot).is_tagged())
        };
        if !tagged {
            return Vec::new();
        }
        self.side.tags(key).unwrap_or_else(|error| {
            tracing::warn!(%error, "tags cannot be read: taken as none");
            Vec::new()
        })
    }

    /// The state of the store.
    #[must_use]
    pub fn info(&self) -> Info {
        let counters = &self.space.counters;
        let sizes = [self.file.metadata(), std::fs::metadata(&self.side.path)];
        let sum = |bytes: fn(&std::fs::Metadata) -> u64| sizes.iter().flatten().map(bytes).sum();
        let degraded: Vec<String> = self.syncer.failure().into_iter().chain(self.aliases.failure()).collect();
        Info {
            format_version: header::FORMAT_VERSION,
            dims: self.space.layout.dims,
            entries: self.space.table().len(),
            capacity_entries: self.space.layout.capacity,
            allocated_bytes: sum(|metadata| metadata.blocks() * 512),
            apparent_bytes: sum(std::fs::Metadata::len),
            memory_bytes: self.space.memory_bytes() + self.writer_bytes.load(Relaxed) + side::CACHE_BYTES as u64,
            quarantined: counters.quarantined.get(),
            evicted: counters.evicted.get(),
            expired: counters.expired.get(),
            write_errors: counters.write_errors.get(),
            syncs: self.syncer.syncs.get(),
            token_keys_pending: self.aliases.pending() as u64,
            degraded: (!degraded.is_empty()).then(|| degraded.join("; ")),
            put_aside: self.put_aside.clone(),
        }
    }

    /// Brings everything to the medium: for a clean end, whatever the durability.
    ///
    /// # Errors
    /// When the sync fails, or one has failed before.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.aliases.settle();
        self.syncer.settle()
    }

    fn check(&self, entries: &[NewEntry<'_>]) -> Result<(), StoreError> {
        let expected = self.space.layout.dims;
        for (index, entry) in entries.iter().enumerate() {
            if entry.unit.len() != expected {
                return Err(StoreError::RowLength { index, found: entry.unit.len(), expected });
            }
            if !entry.norm.is_finite() || !entry.unit.iter().all(|value| value.is_finite()) {
                return Err(StoreError::NotFinite { index });
            }
        }
        Ok(())
    }

    fn write(&self, entries: &[NewEntry<'_>], now: u32) -> Result<(), StoreError> {
        // Names before rows: an entry on disk never has a namespace or tags that are not.
        let mut numbers = HashMap::new();
        for entry in entries {
            if !numbers.contains_key(entry.namespace) {
                numbers.insert(entry.namespace, self.side.namespace_number(entry.namespace)?);
            }
        }
        let tags: Vec<_> =
            entries.iter().filter(|entry| !entry.tags.is_empty()).map(|entry| (entry.key, entry.tags)).collect();

        let mut writer = self.writer();
        if !tags.is_empty() {
            self.side.add_tags(&tags, || self.aliases.keep_tags(tags.iter().map(|(key, _)| *key)))?;
        }
        let drafts = self.drafts(entries, &numbers, now);
        if drafts.is_empty() {
            return Ok(());
        }
        let result = writer.clear_quarantine(&self.space, &*self.disk).and_then(|()| {
            let at_once = PUT_ENTRIES_MAX.min(self.space.layout.slots().len());
            drafts.chunks(at_once).try_for_each(|chunk| writer.put(&self.space, &*self.disk, chunk, now))
        });
        self.wrote(&mut writer);
        result
    }

    /// What follows every change, successful or not, before the next one begins.
    fn wrote(&self, writer: &mut Writer) {
        self.syncer.wrote();
        self.aliases.remove_tags(writer.take_untagged(&self.space));
        self.writer_bytes.store(writer.memory_bytes(), Relaxed);
    }

    /// What of the entries has to be written: one record a key.
    fn drafts<'a>(
        &self,
        entries: &[NewEntry<'a>],
        numbers: &HashMap<&crate::domain::Namespace, u32>,
        now: u32,
    ) -> Vec<Draft<'a>> {
        let mut drafts: Vec<Draft<'a>> = Vec::with_capacity(entries.len());
        let mut places: HashMap<Key, usize> = HashMap::with_capacity(entries.len());
        let table = self.space.table();
        for entry in entries {
            let mut record = Record::new(entry, numbers[entry.namespace], now);
            if let Some(&place) = places.get(&entry.key) {
                let (earlier, _) = drafts[place];
                if entry.replace {
                    drafts[place] = (record, entry.unit);
                }
                if earlier.is_tagged() || record.is_tagged() {
                    drafts[place].0.set_tagged();
                }
                continue;
            }
            if let Some(slot) = self.space.find(&table, &entry.key) {
                let was_tagged = self.space.map.record(slot).is_tagged();
                // A valid entry stays, unless it is to be replaced or has to be marked as tagged.
                if !entry.replace && was_tagged >= record.is_tagged() && self.space.is_valid(slot, now) {
                    continue;
                }
                if was_tagged {
                    record.set_tagged();
                }
            }
            places.insert(entry.key, drafts.len());
            drafts.push((record, entry.unit));
        }
        drafts
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while writing is a bug of ours. What it leaves is what a crash leaves, less the recovery: slots that
        // are neither free nor live. They are lost until the next open, and nothing wrong is served.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps namespace numbers that entries have from being given out again when the names were lost with a side store.
/// Such a number is believed only if its record is intact.
fn reserve_namespaces(space: &Space, writer: &Writer, side: &Side) {
    let known = side.last_namespace();
    let unknown = writer.live_slots().filter_map(|slot| {
        let record = space.map.record(slot);
        (record.namespace() > known && record.is_intact(space.map.row(slot))).then(|| record.namespace())
    });
    side.reserve_namespaces(unknown.max().unwrap_or(0));
}
