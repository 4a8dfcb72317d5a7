//! Erasure: entries that are removed so that no file of the folder has anything of them left.
//!
//! Removing an entry zeroes its record: nothing leads to the row any more, but the row's bytes are there until its slot is used
//! again, and so are those of entries that were evicted, replaced or had expired before. An erasure therefore zeroes every row
//! that no record claims, whosever it was, and syncs the file whatever the durability; and it has the side store written anew.
//!
//! ```text
//! settle    what is on its way, expired or condemned ─► removed as ever
//! erase     records zeroed, readers have left ─► rows without a record zeroed ─► synced
//! side      all writers held ─► copied without what belongs to no entry ─► in place of the old file, which is overwritten
//! ```

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use half::f16;

use super::config::Selector;
use super::core::Core;
use super::error::StoreError;
use super::folder::Folder;
use super::layout::Slot;
use super::record::Record;
use super::rewrite::LeftOut;
use super::space::Space;
use super::{Store, file, side};
use crate::domain::Key;

/// Keys that are removed, and slots whose rows are looked at, at a time: writes of others get their turn in between.
const AT_ONCE: usize = 1024;

/// What an erasure did to a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErasedRows {
    /// Entries that were there and are not any more.
    pub entries: usize,
    /// Rows that were overwritten: theirs, and those of entries that had gone before.
    pub rows: usize,
}

impl Store {
    /// Does at once what is otherwise done behind: removes what has expired or is condemned, and writes the token keys that wait.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn settle(&self, now: u32) -> Result<(), StoreError> {
        self.sweeper.settle()?;
        self.core.sweep_expired(now)?;
        self.core.aliases.settle();
        Ok(())
    }

    /// Removes entries, and overwrites their rows and all others that no entry has. On the medium when this returns.
    ///
    /// # Errors
    /// When a write or a sync fails; the entries are not served then, and erasing them again goes on where this has ended.
    pub fn erase(&self, keys: &[Key]) -> Result<ErasedRows, StoreError> {
        self.core.erase(keys)
    }

    /// Other entries that have the same vector as one of these, to the bit, in the same namespace: other spellings of the same tokens, as
    /// a rule.
    #[must_use]
    pub fn twins(&self, keys: &[Key], now: u32) -> Vec<Key> {
        let space = &self.core.space;
        // Twins have the same norm: rows are read only of those.
        let mut wanted: HashMap<(u32, u32), Vec<Vec<f16>>> = HashMap::new();
        for key in keys {
            let _reading = space.read();
            if let Some(slot) = space.find(key) {
                let record = space.map.record(slot);
                wanted.entry(likeness(record)).or_default().push(space.map.row(slot).to_vec());
            }
        }
        let own: HashSet<&Key> = keys.iter().collect();
        let mut candidates = self.select_records(now, |record| wanted.contains_key(&likeness(record)));
        candidates.retain(|key| !own.contains(key));
        candidates.retain(|key| {
            let _reading = space.read();
            let Some(slot) = space.find(key) else { return false };
            let rows = wanted.get(&likeness(space.map.record(slot)));
            rows.is_some_and(|rows| rows.iter().any(|row| row == space.map.row(slot)))
        });
        candidates
    }

    /// The keys of all entries that are there, expired ones included.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        // At the beginning of time nothing has expired.
        self.select(&Selector::All, 0).unwrap_or_default()
    }

    /// The tags that entries have or had and that fit.
    ///
    /// # Errors
    /// When the side store cannot be read.
    pub fn tags_where(&self, fits: impl Fn(&str) -> bool) -> Result<Vec<String>, StoreError> {
        self.core.side.tags_where(fits).map_err(side::failed("read tags", &self.core.side.path))
    }
}

fn likeness(record: &Record) -> (u32, u32) {
    (record.entry().norm.to_bits(), record.namespace())
}

impl Core {
    fn erase(&self, keys: &[Key]) -> Result<ErasedRows, StoreError> {
        let mut erased = ErasedRows::default();
        for keys in keys.chunks(AT_ONCE) {
            erased.entries += self.change(|writer| writer.remove(keys))?;
        }
        let layout = self.space.layout;
        for used in file::used_rows(&self.file, &layout) {
            let mut first = used.start;
            while first < used.end {
                let end = used.end.min(first.saturating_add(AT_ONCE as Slot));
                erased.rows += self.change(|writer| writer.wipe(first..end))?;
                first = end;
            }
        }
        self.syncer.settle()?;
        Ok(erased)
    }
}

impl Folder {
    /// Writes the side store anew without what belongs to no entry, and overwrites the old file. `stores` are those of all
    /// models that are open in the folder; what other models have stays as it is. Writes to the stores wait meanwhile, and so do reads of tags
    /// and payloads.
    ///
    /// # Errors
    /// When the system refuses, or there is something in the side store that this version does not know. It is as it was then, or written
    /// anew and the old file not overwritten yet, which the next open does.
    pub fn rewrite_side(&self, stores: &[&Store]) -> Result<LeftOut, StoreError> {
        let (side, _) = self.side()?;
        let spaces: HashMap<String, &Space> =
            stores.iter().map(|store| (file::short_name(&store.core.space.model), &*store.core.space)).collect();
        // Nobody is between writing an entry's tags and the entry.
        let held: Vec<_> = stores.iter().map(|store| store.core.writer()).collect();
        let stays = |model: &str, key: &Key| {
            spaces.get(model).is_none_or(|space| {
                let reading = space.read();
                reading.find(key).is_some()
            })
        };
        let left_out = side.rewrite(&stays);
        drop(held);
        left_out
    }

    /// Files here that hold entries and that nothing can read entries of: what was damaged and put aside, and what a repair
    /// has put into quarantine.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn put_aside(&self) -> Result<Vec<PathBuf>, StoreError> {
        let failed = StoreError::io("list", self.path());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path()).map_err(failed)? {
            let path = entry.map_err(StoreError::io("list", self.path()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains(".damaged-") || name.ends_with(".quarantine") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// The folder's path.
    #[must_use]
    pub fn root(&self) -> &std::path::Path {
        self.path()
    }
}
