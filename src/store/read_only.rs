//! One space's file, read by a tool beside whoever writes it: no lock, no write, not even a map.
//!
//! What is promised: a vector that is shown is one that was put under its key, checked over a copy that nobody else can
//! change; memory is 24 bytes an entry and one batch of rows. What is shown is no snapshot: an entry
//! that the writer adds, replaces or removes meanwhile may be missing, and if it was seen before it went it is counted.
//!
//! The file is read with `pread`, not through a map, for a tool meets files that are cut short, are being cut short, or
//! lie on a medium that fails. Through a map each of these would end the process with SIGBUS; here a short file reads as
//! zeros past its end (free slots, and rows whose checksum is wrong), and what the medium cannot give is a damaged
//! entry. A tool reads everything once and in order, and copies it anyway, so a map would save nothing.
//!
//! ```text
//! survey   records, first to last ─► newest live slot of each key, in the order of writes
//! scan     batches of those: record and row copied ─► checksum right? ─ yes ─► shown
//!                                                       └ no ─► record, row, record again
//!                                                                 ├ intact now ─► shown
//!                                                                 ├ the records differ from what was seen ─► changed
//!                                                                 └ else ─► damaged
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytemuck::Zeroable;
use half::f16;

use super::config::Entry;
use super::error::StoreError;
use super::file;
use super::header::{FORMAT_VERSION, Header, HeaderFault};
use super::layout::{HEADER_BYTES, Layout, Slot};
use super::record::{RECORD_BYTES, Record};
use crate::domain::{Key, ModelVersion};

/// How many records are read at a time.
const RECORDS_AT_ONCE: usize = 4096;
/// Rows are read in batches of at most so many entries and about so many bytes.
const ROWS_AT_ONCE: usize = 4096;
const ROW_BYTES_AT_ONCE: usize = 4 << 20;
/// What a byte reads as that the medium cannot give: no record and no row of ours is made of it.
const UNREADABLE: u8 = 0xff;

const _: () = assert!(size_of::<Seen>() == 24);

/// A space's file, opened for reading alone.
pub struct ReadOnly {
    file: File,
    path: PathBuf,
    pub(super) layout: Layout,
    model: ModelVersion,
}

/// An entry as it is shown: everything the file knows of it. Row and record were checked against each other.
pub struct Found<'a> {
    /// What it is found by.
    pub key: Key,
    /// Its facts.
    pub entry: Entry,
    /// The unit vector.
    pub row: &'a [f16],
    /// Whether the side store has tags for it.
    pub tagged: bool,
    /// Whether the side store has a payload for it.
    pub has_payload: bool,
}

/// What the records say, before any row is read: 24 bytes of memory for each live one.
pub struct Survey {
    /// Slots never used, or erased.
    pub free: u64,
    /// The live slot with the highest sequence of each key, in the order of writes.
    pub(super) newest: Vec<Seen>,
    /// Live slots of keys that have a newer one.
    pub(super) superseded: Vec<Seen>,
    /// Slots whose record is neither free nor live.
    pub(super) damaged: Vec<Slot>,
}

/// A live record, by what tells it from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    prefix: u64,
    sequence: u64,
    pub(super) slot: Slot,
}

/// What a scan came to, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Shown.
    pub shown: u64,
    /// Intact, but no longer valid.
    pub expired: u64,
    /// Left out for a newer entry of the same key.
    pub superseded: u64,
    /// Damaged: the checksum is wrong, or the record is neither free nor live.
    pub damaged: u64,
    /// Changed by a writer between being seen and being read.
    pub changed: u64,
}

/// What reading one slot came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// Record and row belong together.
    Intact,
    /// They do not, and nobody is changing them.
    Damaged,
    /// The slot is no longer what it was seen to be.
    Changed,
}

impl ReadOnly {
    /// Opens a space's file. Changes nothing, waits for nobody.
    ///
    /// # Errors
    /// When it cannot be read, is of a newer format, or does not begin as a space does ([`StoreError::NotASpace`]).
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let mut header = [0; HEADER_BYTES as usize];
        read_or_zero(&file, &mut header, 0).map_err(StoreError::io("read the header of", path))?;
        match Header::read(&header) {
            Ok((layout, model)) => Ok(Self { file, path: path.to_owned(), layout, model }),
            Err(HeaderFault::Newer(found)) => {
                Err(StoreError::NewerFormat { path: path.to_owned(), found, supported: FORMAT_VERSION })
            }
            Err(HeaderFault::Damaged(reason)) => Err(StoreError::NotASpace { path: path.to_owned(), reason }),
        }
    }

    /// The space files of a folder, whatever model they are for, in the order of their names.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn spaces(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
        let failed = || StoreError::io("read the folder", folder);
        let mut spaces = Vec::new();
        for item in std::fs::read_dir(folder).map_err(failed())? {
            let path = item.map_err(failed())?.path();
            if path.extension().is_some_and(|extension| extension == "space") {
                spaces.push(path);
            }
        }
        spaces.sort_unstable();
        Ok(spaces)
    }

    /// What is wrong with the file besides its entries, one line each.
    ///
    /// # Errors
    /// When the file cannot be examined.
    pub fn faults(&self) -> Result<Vec<String>, StoreError> {
        let len = self.file.metadata().map_err(StoreError::io("examine", &self.path))?.len();
        let mut faults = Vec::new();
        if let Some(missing) = self.layout.file_bytes.checked_sub(len).filter(|&missing| missing > 0) {
            faults.push(format!("it was cut short: {missing} bytes are missing at its end"));
        }
        let expected = file::short_name(&self.model);
        if self.path.file_stem().is_none_or(|stem| stem != expected.as_str()) {
            faults.push(format!("it is the space of model {}, whose file is {expected}.space", self.model));
        }
        Ok(faults)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model whose vectors these are.
    #[must_use]
    pub fn model(&self) -> ModelVersion {
        self.model
    }

    /// Length of a vector.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.layout.dims
    }

    /// The most entries the file has room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.layout.capacity
    }

    /// Reads the records, from the first to the last, but for those in holes; and no row.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut survey = Survey { free: 0, newest: Vec::new(), superseded: Vec::new(), damaged: Vec::new() };
        let mut records = vec![Record::zeroed(); RECORDS_AT_ONCE.min(self.layout.capacity as usize)];
        let mut looked_at = 0;
        for slots in file::used_slots(&self.file, &self.layout) {
            looked_at += slots.len() as u64;
            for first in slots.clone().step_by(RECORDS_AT_ONCE) {
                let records = &mut records[..RECORDS_AT_ONCE.min((slots.end - first) as usize)];
                self.read_records(first, records);
                for (record, slot) in records.iter().zip(first..) {
                    self.note(&mut survey, slot, *record);
                }
            }
        }
        survey.free += self.layout.capacity - looked_at;
        self.part_superseded(&mut survey);
        survey.newest.sort_unstable_by_key(|seen| (seen.sequence, seen.slot));
        survey
    }

    /// The keys of all records that are not free, whatever their state.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        let mut records = vec![Record::zeroed(); RECORDS_AT_ONCE.min(self.layout.capacity as usize)];
        let mut keys = Vec::new();
        for slots in file::used_slots(&self.file, &self.layout) {
            for first in slots.clone().step_by(RECORDS_AT_ONCE) {
                let records = &mut records[..RECORDS_AT_ONCE.min((slots.end - first) as usize)];
                self.read_records(first, records);
                keys.extend(records.iter().filter(|record| !record.is_free()).map(|record| record.key));
            }
        }
        keys
    }

    /// Puts a slot where it belongs by its record.
    fn note(&self, survey: &mut Survey, slot: Slot, mut record: Record) {
        if !record.is_free() && !record.is_live() {
            // A record caught while it was being written reads otherwise the second time.
            record = self.record(slot);
        }
        if record.is_free() {
            survey.free += 1;
        } else if record.is_live() {
            survey.newest.push(Seen { prefix: record.key.prefix(), sequence: record.sequence(), slot });
        } else {
            survey.damaged.push(slot);
        }
    }

    /// Takes older entries of a key that has a newer one out of `newest`.
    fn part_superseded(&self, survey: &mut Survey) {
        survey.newest.sort_unstable();
        let mut kept = Vec::with_capacity(survey.newest.len());
        // From the highest sequence of each key to the lowest.
        for seen in std::mem::take(&mut survey.newest).into_iter().rev() {
            // Two keys with one prefix are next to impossible, but two entries with one key are not.
            let same_prefix = kept.iter().rev().take_while(|kept: &&Seen| kept.prefix == seen.prefix);
            let newer = same_prefix.into_iter().any(|kept| self.record(kept.slot).key == self.record(seen.slot).key);
            if newer { survey.superseded.push(seen) } else { kept.push(seen) }
        }
        survey.newest = kept;
    }

    /// Shows each newest entry that is intact and valid at `now` (Unix seconds), oldest first.
    ///
    /// # Errors
    /// Whatever `found` answers; reading itself never fails: see the head of this module.
    pub fn scan<E>(
        &self,
        survey: &Survey,
        now: u32,
        mut found: impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<Scanned, E> {
        let mut scanned = Scanned {
            superseded: survey.superseded.len() as u64,
            damaged: survey.damaged.len() as u64,
            ..Scanned::default()
        };
        self.check(&survey.newest, |_, checked, record, row| {
            match checked {
                Checked::Damaged => scanned.damaged += 1,
                Checked::Changed => scanned.changed += 1,
                Checked::Intact if record.is_expired(now) => scanned.expired += 1,
                Checked::Intact => {
                    scanned.shown += 1;
                    let (tagged, has_payload) = (record.is_tagged(), record.has_payload());
                    found(Found { key: record.key, entry: record.entry(), row, tagged, has_payload })?;
                }
            }
            Ok(())
        })?;
        Ok(scanned)
    }

    /// Copies each slot's record and row, and says what they are.
    pub(super) fn check<E>(
        &self,
        seen: &[Seen],
        mut found: impl FnMut(Seen, Checked, &Record, &[f16]) -> Result<(), E>,
    ) -> Result<(), E> {
        let dims = self.layout.dims;
        let at_once = (ROW_BYTES_AT_ONCE / self.layout.row_bytes()).clamp(1, ROWS_AT_ONCE);
        let (mut records, mut rows) = (Vec::new(), Vec::new());
        for batch in seen.chunks(at_once) {
            records.resize(batch.len(), Record::zeroed());
            rows.resize(batch.len() * dims, f16::ZERO);
            let mut from = 0;
            for run in batch.chunk_by(|one, next| one.slot + 1 == next.slot) {
                let to = from + run.len();
                self.read_records(run[0].slot, &mut records[from..to]);
                self.read_rows(run[0].slot, &mut rows[from * dims..to * dims]);
                from = to;
            }
            for ((seen, record), row) in batch.iter().zip(&mut records).zip(rows.chunks_exact_mut(dims)) {
                let checked = if seen.is(record) && record.is_intact(row) {
                    Checked::Intact
                } else {
                    self.check_again(*seen, record, row)
                };
                found(*seen, checked, record, row)?;
            }
        }
        Ok(())
    }

    /// A second look at what did not fit together: it may have been caught in the middle of a change. A row changes only
    /// after its record has, so the same record before and after the row means that the row is its own.
    fn check_again(&self, seen: Seen, record: &mut Record, row: &mut [f16]) -> Checked {
        *record = self.record(seen.slot);
        self.read_rows(seen.slot, row);
        if !seen.is(record) || self.record(seen.slot) != *record {
            Checked::Changed
        } else if record.is_intact(row) {
            Checked::Intact
        } else {
            Checked::Damaged
        }
    }

    pub(super) fn record(&self, slot: Slot) -> Record {
        let mut record = [Record::zeroed()];
        self.read_records(slot, &mut record);
        record[0]
    }

    pub(super) fn row(&self, slot: Slot) -> Vec<f16> {
        let mut row = vec![f16::ZERO; self.layout.dims];
        self.read_rows(slot, &mut row);
        row
    }

    fn read_records(&self, first: Slot, records: &mut [Record]) {
        self.read(bytemuck::cast_slice_mut(records), self.layout.record_offset(first), RECORD_BYTES as usize);
    }

    fn read_rows(&self, first: Slot, rows: &mut [f16]) {
        self.read(bytemuck::cast_slice_mut(rows), self.layout.row_offset(first), self.layout.row_bytes());
    }

    /// Reads what can be read; what the medium refuses costs the units it lies in, not their neighbours.
    fn read(&self, bytes: &mut [u8], offset: u64, unit: usize) {
        let Err(error) = read_or_zero(&self.file, bytes, offset) else { return };
        tracing::warn!(path = %self.path.display(), offset, %error, "part of the file cannot be read");
        for (unit, number) in bytes.chunks_mut(unit).zip(0_u64..) {
            if read_or_zero(&self.file, unit, offset + number * unit.len() as u64).is_err() {
                unit.fill(UNREADABLE);
            }
        }
    }
}

impl Seen {
    fn is(self, record: &Record) -> bool {
        record.is_live() && record.sequence() == self.sequence && record.key.prefix() == self.prefix
    }
}

impl Survey {
    /// How many entries a scan will look at.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.newest.len() as u64
    }
}

/// What the file does not have is zero, as in a hole.
fn read_or_zero(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
