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
//! Store ─┬─ Space    table, map: get_many, contains_many, scan   many readers, no lock
//!        ├─ Writer   slots, order of writes, eviction           one at a time
//!        ├─ Syncer   shared syncs, the latch                    whoever waits
//!        ├─ Side     redb: namespaces, tags, payloads           before a row
//!        ├─ Aliases  redb: token keys                           behind the answer
//!        └─ Upkeep   expiry sweeps, scrubbing                   in the background
//! ```

mod aliases;
mod atomic;
mod attachments;
mod bits;
mod census;
mod compact;
mod condemned;
mod config;
mod core;
mod disk;
mod erase;
mod error;
mod eviction;
mod fault;
mod file;
mod folder;
mod header;
mod info;
mod layout;
mod lock;
mod map;
mod prefetch;
mod quota;
mod read_only;
mod readers;
mod record;
mod rewrite;
pub(crate) mod shred;
pub(crate) mod side;
mod snapshot;
mod space;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod upkeep;
mod verify;
mod watch;
mod words;
mod writer;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use half::f16;

pub use attachments::Attachments;
pub use census::{Census, Share};
pub use compact::{Compacted, CompactedSpace, compact};
pub use config::{
    Config, Cursor, Durability, Entry, Footprint, NewEntry, PAYLOAD_BYTES_MAX, Scrubbed, Selector, Upkeep,
};
pub use erase::ErasedRows;
pub use error::{StoreError, Torn};
pub use folder::Folder;
pub use info::{Ages, Info};
pub use read_only::{Found, ReadOnly, Scanned, Survey};
pub use rewrite::LeftOut;
pub use upkeep::unix_seconds;
pub use verify::{Repaired, Report, SideReport, SpaceReport, repair, verify};
pub use watch::Watcher;

use self::aliases::Aliases;
use self::condemned::Sweeper;
use self::core::Core;
#[cfg(test)]
use self::disk::{Files, System};
use self::folder::Seat;
use self::layout::Layout;
use self::map::Map;
use self::record::Record;
use self::side::Side;
use self::space::Space;
use self::sync::{IntervalSync, Syncer};
use self::upkeep::Upkeeper;
use self::writer::Writer;
use crate::domain::{Key, ModelVersion, Namespace, Pattern, TokenKey};

/// One model's embeddings in a folder. Shared by reference between threads; reads wait for nobody.
pub struct Store {
    core: Arc<Core>,
    // Fields are dropped in this order: threads end first, the folder goes last.
    sweeper: Sweeper,
    _upkeep: Option<Upkeeper>,
    _interval: Option<IntervalSync>,
    _closing: Closing,
    _seat: Seat,
}

/// Leaves the table for the next open, when everything else has ended.
struct Closing(Arc<Core>);

impl Store {
    /// Opens the folder, making it and what belongs in it if need be. After a clean close the table is taken from where
    /// that has left it; else the slot region is read (64 bytes an entry). The rows are not read.
    ///
    /// # Errors
    /// When another process has the folder, the file is of a newer format or another model, the configuration is
    /// impossible, or the system refuses. A damaged file is put aside instead: see [`Info::put_aside`].
    pub fn open(folder: &Path, model: &ModelVersion, dims: usize, config: &Config) -> Result<Self, StoreError> {
        // What is impossible is said before anything is made.
        config.capacity_for(dims).and_then(|capacity| Layout::new(dims, capacity))?;
        Self::open_in(&Folder::hold(folder)?, model, dims, config)
    }

    /// As `open`, with everything that changes the folder going through `files`.
    #[cfg(test)]
    fn open_on(
        files: Arc<dyn Files>,
        folder: &Path,
        model: &ModelVersion,
        dims: usize,
        config: &Config,
    ) -> Result<Self, StoreError> {
        Self::open_in(&Folder::hold_on(files, folder)?, model, dims, config)
    }

    /// Opens one of the models of a folder that is held.
    fn open_in(folder: &Folder, model: &ModelVersion, dims: usize, config: &Config) -> Result<Self, StoreError> {
        let layout = Layout::new(dims, config.capacity_for(dims)?)?;
        let seat = folder.take_seat(model)?;
        let files = folder.files();
        // Entries that were being copied when a process ended: what is erased is not to go on there.
        let copied = file::path_of(folder.path(), model).with_extension("space.new");
        shred::shred(&copied).map_err(StoreError::io("remove", &copied))?;
        let opened = file::open(&**files, folder.path(), model, &layout)?;
        let path = opened.path;
        let map = Map::new(&opened.file, &path, layout).map_err(StoreError::io("map", &path))?;
        let mut space = Space::new(Arc::clone(files), path.clone(), *model, layout, map)
            .map_err(StoreError::io("map the table of", &path))?;
        space.counters.quarantined.add(opened.damaged);
        let (file, disk) = (opened.file, opened.disk);
        let remembered = snapshot::read(&mut space, &file);
        let space = Arc::new(space);
        let mut writer = match remembered {
            Some(remembered) => Writer::remember(Arc::clone(&space), Arc::clone(&disk), remembered),
            None => Writer::recover(Arc::clone(&space), Arc::clone(&disk), file::used_slots(&file, &layout)),
        };

        let name = file::short_name(model);
        let (side_file, file_note) = folder.side()?;
        let (side, side_note) = Side::open(&side_file, &name)?;
        let side = Arc::new(side);
        if side.is_new {
            // Known after a clean close as well: the side store is older than the first entry, unless it was lost.
            reserve_namespaces(&space, &side);
        }
        space.condemned.begin(&side)?;
        writer.go_on_after(space.condemned.last_sequence());
        let shared = Arc::clone(&space);
        let is_live = Box::new(move |key: &Key| shared.read().find(key).is_some());
        let aliases = Aliases::start(Arc::clone(&side), &name, config::aliases_max(layout.capacity), is_live)?;
        let syncer = Arc::new(Syncer::new(disk, &path));
        let core = Arc::new(Core {
            durability: config.durability,
            space,
            file,
            figures: Mutex::new(writer.figures()),
            writer: Mutex::new(writer),
            syncer,
            on_demand: Mutex::default(),
            aliases,
            side,
            scrubbing: Mutex::default(),
            opened_clean: remembered.is_some(),
            put_aside: opened.put_aside.into_iter().chain(file_note).chain(side_note).collect(),
        });
        let interval = match config.durability {
            Durability::Interval(interval) => Some(IntervalSync::start(Arc::clone(&core.syncer), interval)?),
            Durability::Process | Durability::Always => None,
        };
        let upkeep = Upkeeper::start(&core, config.upkeep)?;
        let sweeper = Sweeper::start(&core);
        Ok(Self {
            sweeper,
            _closing: Closing(Arc::clone(&core)),
            core,
            _upkeep: upkeep,
            _interval: interval,
            _seat: seat,
        })
    }

    /// Shows each live, unexpired, intact entry with its row, by the index of its key. `now` is in Unix seconds.
    ///
    /// `found` runs under the readers' lock: it must be quick, and must not call the store.
    ///
    /// # Errors
    /// When the file was cut short meanwhile: what was shown must be forgotten.
    pub fn get_many(&self, keys: &[Key], now: u32, found: impl FnMut(usize, Entry, &[f16])) -> Result<(), Torn> {
        self.core.space.visit(keys, now, true, found)
    }

    /// As [`Self::get_many`], but not a use, as far as eviction is concerned.
    ///
    /// # Errors
    /// As for [`Self::get_many`].
    pub fn peek_many(&self, keys: &[Key], now: u32, found: impl FnMut(usize, Entry, &[f16])) -> Result<(), Torn> {
        self.core.space.visit(keys, now, false, found)
    }

    /// Tells `watcher` of every valid entry, and from now on of every change, as long as the store is open. Returns
    /// when all are told; writes go on meanwhile.
    pub fn watch(&self, watcher: Arc<dyn Watcher>, now: u32) {
        self.core.watch(watcher, now);
    }

    /// The facts of each key's entry, `None` for those that `get_many` would not show. Not a use, as far as eviction is concerned.
    pub fn contains_many(&self, keys: &[Key], now: u32) -> Vec<Option<Entry>> {
        let mut entries = vec![None; keys.len()];
        // Asked again, the entries that were cut off are misses.
        while self.core.space.visit(keys, now, false, |index, entry, _| entries[index] = Some(entry)).is_err() {
            entries.fill(None);
        }
        entries
    }

    /// The keys of the entries that are meant, each once.
    ///
    /// # Errors
    /// When the side store cannot be read.
    pub fn select(&self, selector: &Selector<'_>, now: u32) -> Result<Vec<Key>, StoreError> {
        let side =
            |result: Result<Vec<Key>, redb::Error>| result.map_err(side::failed("read tags", &self.core.side.path));
        let (mut keys, tagged) = match selector {
            Selector::Keys(keys) => {
                let mut seen = HashSet::new();
                (keys.iter().copied().filter(|key| seen.insert(*key)).collect(), false)
            }
            Selector::Tag(tag) => (side(self.core.side.keys_with_tag(tag))?, true),
            Selector::TagPattern(pattern) => (side(self.core.side.keys_with_tag_like(pattern))?, true),
            Selector::All => return Ok(self.select_records(now, |_| true)),
            Selector::Namespace(namespace) => {
                let Some(number) = self.core.side.known_namespace(namespace) else { return Ok(Vec::new()) };
                return Ok(self.select_records(now, |record| record.namespace() == number));
            }
            Selector::CreatedBefore(time) => return Ok(self.select_records(now, |record| record.created < *time)),
        };
        let reading = self.core.space.read();
        keys.retain(|key| {
            reading.find(key).is_some_and(|slot| {
                reading.is_valid(slot, now) && (!tagged || self.core.space.map.record(slot).is_tagged())
            })
        });
        Ok(keys)
    }

    /// Shows the next entries, at most `limit` of them, in the order of their places. Answers how many were shown: none
    /// when the end is reached. An entry that is there from the scan's beginning to its end is shown exactly once; one
    /// written meanwhile is not. Not a use, as far as eviction is concerned.
    ///
    /// # Errors
    /// When the file was cut short meanwhile: what this call has shown must be forgotten; the cursor stands as before.
    pub fn scan(
        &self,
        cursor: &mut Cursor,
        now: u32,
        limit: usize,
        found: impl FnMut(Key, Entry, &[f16]),
    ) -> Result<usize, Torn> {
        self.core.space.scan(cursor, now, limit, self.core.figures().last_sequence, found)
    }

    /// How many entries have which age.
    #[must_use]
    pub fn ages(&self, now: u32) -> Ages {
        let mut ages = Ages::default();
        self.select_records(now, |record| {
            ages.count(now.saturating_sub(record.created));
            false
        });
        ages
    }

    /// The namespaces and tags with most entries. Reads no more than some thousand entries, however many there are.
    #[must_use]
    pub fn census(&self, now: u32) -> Census {
        self.core.census(now)
    }

    /// Keys of the entries that may be served and whose records are wanted, in the order of their places.
    fn select_records(&self, now: u32, mut wanted: impl FnMut(&Record) -> bool) -> Vec<Key> {
        let mut keys = Vec::new();
        for slot in self.core.space.layout.slots() {
            // Briefly each time, so that a writer never waits for the whole walk.
            let reading = self.core.space.read();
            if self.core.space.live.get(slot) {
                let record = self.core.space.map.record(slot);
                if !record.is_expired(now) && wanted(record) && reading.is_valid(slot, now) {
                    keys.push(record.key);
                }
            }
        }
        keys
    }

    /// Keeps entries. A key that has a valid entry keeps it unless `replace` is set; of a key given twice, the first
    /// stays, or the last with `replace`. Returns when the entries are as durable as configured, or as one of them asks if that is
    /// more. Tags add up; a payload stays until another is given.
    ///
    /// # Errors
    /// When a row has the wrong length or a value that is not finite, or a payload is too long (nothing is written
    /// then), everything that could be evicted is pinned, or a write or sync fails (some may have been written; none is
    /// wrong).
    pub fn put_many(&self, entries: &[NewEntry<'_>], now: u32) -> Result<(), StoreError> {
        self.core.put_many(entries, now)
    }

    /// Erases entries. Answers how many of the keys there were.
    ///
    /// # Errors
    /// When a write or sync fails; the entries are no longer served then, but may come back at the next open.
    pub fn remove_many(&self, keys: &[Key]) -> Result<usize, StoreError> {
        self.core.remove_many(keys)
    }

    /// Ends all entries there are with one of the tags, or one that matches the pattern, of those written before `before` (Unix seconds) if
    /// it is given: when this returns none of them is served, now or after a restart. They are erased behind, which takes seconds a
    /// million; until then they take room, and a look at the files from outside finds them.
    ///
    /// # Errors
    /// When that cannot be written down; then nothing has changed.
    pub fn condemn(&self, tags: &[String], pattern: Option<&Pattern>, before: Option<u32>) -> Result<(), StoreError> {
        self.sweeper.condemn(tags, pattern, before)
    }

    /// How many entries have a tag, at most: some of those that are counted may be gone. Takes no longer for many.
    ///
    /// # Errors
    /// When the side store cannot be read.
    pub fn count_tagged(&self, tag: &str) -> Result<u64, StoreError> {
        self.core.side.count_with_tag(tag).map_err(side::failed("read tags", &self.core.side.path))
    }

    /// The same for all tags that match, each counted by itself: an entry with two of them counts twice. Takes longer for many tags, not
    /// for many entries.
    ///
    /// # Errors
    /// When the side store cannot be read.
    pub fn count_tagged_like(&self, pattern: &Pattern) -> Result<u64, StoreError> {
        self.core.side.count_with_tag_like(pattern).map_err(side::failed("read tags", &self.core.side.path))
    }

    /// Erases all entries. Answers how many there were.
    ///
    /// # Errors
    /// As for [`Self::remove_many`].
    pub fn clear(&self) -> Result<usize, StoreError> {
        // Expired ones too.
        self.core.remove_many(&self.keys())
    }

    /// Marks entries to be computed again when they are next asked for; until then they are served, as [`Entry::stale`].
    /// Answers how many were marked: those that were there and not marked yet.
    ///
    /// # Errors
    /// When a write or sync fails; some may be marked then, none is lost.
    pub fn mark_stale(&self, keys: &[Key], now: u32) -> Result<usize, StoreError> {
        self.core.mark_stale(keys, now)
    }

    /// The places of keys' entries, as a [`Watcher`] is told of them; of those that have one, in no order.
    #[must_use]
    pub fn places(&self, keys: &[Key]) -> Vec<u32> {
        let mut places = Vec::with_capacity(keys.len());
        for keys in keys.chunks(1024) {
            let reading = self.core.space.read();
            places.extend(keys.iter().filter_map(|key| reading.find(key)));
        }
        places
    }

    /// The sequence number of the newest entry.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.core.figures().last_sequence
    }

    /// The number of a namespace; `None` if nothing was ever put in it.
    #[must_use]
    pub fn namespace_number(&self, namespace: &Namespace) -> Option<u32> {
        self.core.side.known_namespace(namespace)
    }

    /// The numbers of the namespaces whose names are wanted, in ascending order.
    #[must_use]
    pub fn namespaces(&self, wanted: impl Fn(&str) -> bool) -> Vec<u32> {
        self.core.side.namespaces(wanted)
    }

    /// Bytes of an entry's record and row: what is beside them, tags and payload, apart.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        self.core.entry_bytes()
    }

    /// The key that a text of these tokens was put under. The entry may be gone.
    #[must_use]
    pub fn find_by_tokens(&self, key: &TokenKey) -> Option<Key> {
        self.core.aliases.find(key)
    }

    /// The tags of a key's entry, in order; none if it has no entry.
    #[must_use]
    pub fn tags(&self, key: &Key) -> Vec<String> {
        if !self.core.record_says(key, Record::is_tagged) {
            return Vec::new();
        }
        self.core.side.tags(key).unwrap_or_else(|error| {
            tracing::warn!(%error, "tags cannot be read: taken as none");
            Vec::new()
        })
    }

    /// The payload of a key's entry; none if it has no entry.
    #[must_use]
    pub fn payload(&self, key: &Key) -> Option<String> {
        if !self.core.record_says(key, Record::has_payload) {
            return None;
        }
        self.core.side.payload(key).unwrap_or_else(|error| {
            tracing::warn!(%error, "a payload cannot be read: taken as none");
            None
        })
    }

    /// The name behind the number of a namespace; empty for the default one, `None` if it was lost.
    #[must_use]
    pub fn namespace_name(&self, number: u32) -> Option<String> {
        self.core.side.namespace_name(number)
    }

    /// Erases expired entries now. Answers how many there were. Costs nothing when none is due.
    ///
    /// # Errors
    /// When a write fails; they are not served all the same.
    pub fn sweep_expired(&self, now: u32) -> Result<usize, StoreError> {
        self.core.sweep_expired(now)
    }

    /// Checks the checksums of the next entries, whether or not they have been read since open.
    pub fn scrub(&self, entries_max: usize) -> Scrubbed {
        self.core.scrub(entries_max)
    }

    /// A folder for what others derive from the entries, and can derive again; not made here. It goes when the model is deleted.
    #[must_use]
    pub fn derived(&self) -> PathBuf {
        file::derived_for(&self.core.space.path)
    }

    /// The state of the store.
    #[must_use]
    pub fn info(&self) -> Info {
        self.core.info()
    }

    /// Brings everything to the medium: for a clean end, whatever the durability.
    ///
    /// # Errors
    /// When the sync fails, or one has failed before.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.core.aliases.settle();
        self.core.syncer.settle()
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.leave_snapshot();
    }
}

/// Keeps namespace numbers that entries have from being given out again when the names were lost with a side store.
/// Such a number is believed only if its record is intact.
fn reserve_namespaces(space: &Space, side: &Side) {
    let known = side.last_namespace();
    let unknown = space.live.iter().filter_map(|slot| {
        let record = space.map.record(slot);
        (record.namespace() > known && record.is_intact(space.map.row(slot))).then(|| record.namespace())
    });
    side.reserve_namespaces(unknown.max().unwrap_or(0));
}
