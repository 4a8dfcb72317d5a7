//! Whether the files of a folder are sound, and what to do where they are not.
//!
//! Looking changes nothing and needs no lock: it can be done beside a running server. Repairing needs the folder for
//! itself. It loses nothing that could be looked at later: a damaged entry's bytes are on the medium in
//! `<16 hex digits>.quarantine` before its slot is erased, and a file that does not begin as a space does is renamed.
//!
//! ```text
//! slots = free + live + malformed        live = intact + wrong checksum + changed meanwhile (+ not looked at, in a sample)
//! damaged = malformed + wrong checksum   superseded: part of live; expired: part of intact
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytemuck::Zeroable;

use super::attachments;
use super::disk::System;
use super::error::StoreError;
use super::file;
use super::layout::Slot;
use super::lock::FolderLock;
use super::read_only::{Checked, ReadOnly, Seen};
use super::record::Record;
use super::side;
use super::snapshot;

/// How many entries are looked at between two reports of progress.
const PROGRESS_EVERY: u64 = 4096;

/// What a folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Each space file, by name.
    pub spaces: Vec<SpaceReport>,
    /// The side store.
    pub side: SideReport,
}

/// What a space file holds. Counts are of slots; `FORMAT.md` says what the words mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SpaceReport {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it occupies on the medium.
    pub allocated_bytes: u64,
    /// Why nothing more can be said of it, if so: no header of ours, or one of a newer format.
    pub unreadable: Option<String>,
    /// What is wrong with the file besides its entries, one line each.
    pub faults: Vec<String>,
    /// The fingerprint of the model it is for.
    pub model: String,
    /// Length of a vector.
    pub dims: usize,
    /// How many slots there are.
    pub slots: u64,
    /// Never used, or erased.
    pub free: u64,
    /// Claimed by an entry.
    pub live: u64,
    /// Live ones whose checksum was computed: all, or a sample.
    pub checked: u64,
    /// Checked, and as they were written.
    pub intact: u64,
    /// Neither free nor live, or live with a wrong checksum. Never served.
    pub damaged: u64,
    /// Live, but another slot has a newer entry of the same key.
    pub superseded: u64,
    /// Intact, but no longer valid.
    pub expired: u64,
    /// Changed by a running server while they were looked at.
    pub changed: u64,
}

/// What is known of the side store.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SideReport {
    /// There is none, as in a folder that was never served from.
    #[default]
    Absent,
    /// It opens.
    Sound,
    /// It was not closed in order, as after a crash: the next open repairs it.
    NotClosed,
    /// A running server has it: not looked at.
    InUse,
    /// It cannot be opened, and why.
    Damaged(String),
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Repaired {
    /// Damaged entries that were put into quarantine files, and their slots erased.
    pub quarantined: u64,
    /// Files that were renamed because nothing can read them, one line each.
    pub put_aside: Vec<String>,
    /// Files that had been cut short and have their length again.
    pub lengthened: Vec<PathBuf>,
}

impl Report {
    /// Whether nothing was found damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.spaces.iter().all(SpaceReport::is_sound) && !matches!(self.side, SideReport::Damaged(_))
    }
}

impl SpaceReport {
    /// Whether nothing was found damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damaged == 0 && self.faults.is_empty() && self.unreadable.is_none()
    }
}

/// Looks at every file of a folder; at `sample` entries a file chosen by chance, if given. `now` is in Unix seconds.
/// `progress` is told of each file how many entries were looked at, and how many will be.
///
/// # Errors
/// When the folder cannot be read.
pub fn verify(
    folder: &Path,
    sample: Option<u64>,
    now: u32,
    mut progress: impl FnMut(&Path, u64, u64),
) -> Result<Report, StoreError> {
    let mut spaces = Vec::new();
    for path in ReadOnly::spaces(folder)? {
        spaces.push(verify_space(&path, sample, now, |done, total| progress(&path, done, total))?);
    }
    Ok(Report { spaces, side: verify_side(folder) })
}

fn verify_space(
    path: &Path,
    sample: Option<u64>,
    now: u32,
    mut progress: impl FnMut(u64, u64),
) -> Result<SpaceReport, StoreError> {
    let metadata = std::fs::metadata(path).map_err(StoreError::io("examine", path))?;
    let mut report = SpaceReport {
        path: path.to_owned(),
        bytes: metadata.len(),
        allocated_bytes: metadata.blocks() * 512,
        ..SpaceReport::default()
    };
    let space = match ReadOnly::open(path) {
        Ok(space) => space,
        Err(error @ (StoreError::NotASpace { .. } | StoreError::NewerFormat { .. })) => {
            report.unreadable = Some(error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.model = space.model().to_string();
    report.dims = space.dims();
    report.slots = space.capacity();
    report.faults = space.faults()?;

    let survey = space.survey();
    report.free = survey.free;
    report.superseded = survey.superseded.len() as u64;
    report.damaged = survey.damaged.len() as u64;
    let mut seen: Vec<Seen> = survey.newest.into_iter().chain(survey.superseded).collect();
    report.live = seen.len() as u64;
    seen.sort_unstable_by_key(|seen| seen.slot);
    if let Some(count) = sample {
        choose(&mut seen, count, chance());
    }
    let total = seen.len() as u64;
    progress(0, total);
    let Ok(()) = space.check(&seen, |_, checked, record, _| {
        report.checked += 1;
        match checked {
            Checked::Intact => {
                report.intact += 1;
                report.expired += u64::from(record.is_expired(now));
            }
            Checked::Damaged => report.damaged += 1,
            Checked::Changed => report.changed += 1,
        }
        if report.checked.is_multiple_of(PROGRESS_EVERY) || report.checked == total {
            progress(report.checked, total);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(report)
}

/// Keeps `count` of the items, chosen by chance, in their order: selection sampling (Knuth, volume 2, 3.4.2, algorithm S).
fn choose<T>(items: &mut Vec<T>, count: u64, mut state: u64) {
    let (mut left, mut wanted) = (items.len() as u64, count);
    items.retain(|_| {
        // SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut drawn = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        drawn ^= drawn >> 31;
        let chosen = (u128::from(drawn) * u128::from(left)) >> 64 < u128::from(wanted);
        left -= 1;
        wanted -= u64::from(chosen);
        chosen
    });
}

/// A number that is another one each time.
fn chance() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn verify_side(folder: &Path) -> SideReport {
    let path = side::path_in(folder);
    if !path.exists() {
        return SideReport::Absent;
    }
    // Held for the moment that redb has the file open, for a server that starts in this moment could not open it. Where
    // the lock cannot be taken for another reason, as on a read-only medium, no server can start either.
    let _lock = match FolderLock::take(folder) {
        Err(StoreError::InUse { .. }) => return SideReport::InUse,
        lock => lock.ok(),
    };
    match attachments::examine(&path) {
        Ok(true) => SideReport::Sound,
        Ok(false) => SideReport::NotClosed,
        Err(redb::Error::DatabaseAlreadyOpen) => SideReport::InUse,
        Err(error) => SideReport::Damaged(error.to_string()),
    }
}

/// Makes every file of a folder sound: damaged entries go into a quarantine file and their slots are erased; files that
/// nothing can read are renamed; files cut short get their length back. A file of a newer format is left alone.
///
/// # Errors
/// When another process has the folder, or the system refuses. What was repaired until then is repaired.
pub fn repair(folder: &Path, mut progress: impl FnMut(&Path, u64, u64)) -> Result<Repaired, StoreError> {
    let _lock = FolderLock::take(folder)?;
    let mut repaired = Repaired::default();
    for path in ReadOnly::spaces(folder)? {
        match ReadOnly::open(&path) {
            Ok(space) => repair_space(&space, &mut repaired, |done, total| progress(&path, done, total))?,
            Err(StoreError::NotASpace { reason, .. }) => {
                repaired.put_aside.push(file::put_aside(&System, &path, reason)?)
            }
            Err(StoreError::NewerFormat { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let path = side::path_in(folder);
    if path.exists() {
        repaired.put_aside.extend(attachments::mend(&path)?);
    }
    Ok(repaired)
}

fn repair_space(
    space: &ReadOnly,
    repaired: &mut Repaired,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), StoreError> {
    let path = space.path();
    let survey = space.survey();
    let mut damaged: Vec<Slot> = survey.damaged;
    let mut seen: Vec<Seen> = survey.newest.into_iter().chain(survey.superseded).collect();
    seen.sort_unstable_by_key(|seen| seen.slot);
    let (mut done, total) = (0, seen.len() as u64);
    progress(done, total);
    let Ok(()) = space.check(&seen, |seen, checked, _, _| {
        if checked != Checked::Intact {
            damaged.push(seen.slot);
        }
        done += 1;
        if done % PROGRESS_EVERY == 0 || done == total {
            progress(done, total);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let file = File::options().read(true).write(true).open(path).map_err(StoreError::io("open", path))?;
    let is_short = file.metadata().map_err(StoreError::io("examine", path))?.len() < space.layout.file_bytes;
    if damaged.is_empty() && !is_short {
        return Ok(());
    }
    // What a clean close left tells of slots that are about to be erased.
    snapshot::remove(&System, path).map_err(StoreError::io("remove the table of", path))?;
    damaged.sort_unstable();
    if !damaged.is_empty() {
        quarantine(space, &damaged)?;
    }
    if is_short {
        file.set_len(space.layout.file_bytes).map_err(StoreError::io("lengthen", path))?;
        repaired.lengthened.push(path.to_owned());
    }
    for &slot in &damaged {
        let free = Record::zeroed();
        file.write_all_at(bytemuck::bytes_of(&free), space.layout.record_offset(slot))
            .map_err(StoreError::io("erase entries in", path))?;
    }
    file.sync_all().map_err(StoreError::io("sync", path))?;
    repaired.quarantined += damaged.len() as u64;
    Ok(())
}

/// Where a space's damaged entries are put.
fn quarantine_path(space: &Path) -> PathBuf {
    space.with_extension("quarantine")
}

/// Appends slots' records and rows to the quarantine file; they are on the medium when this returns.
fn quarantine(space: &ReadOnly, slots: &[Slot]) -> Result<(), StoreError> {
    let path = quarantine_path(space.path());
    let write = || -> io::Result<()> {
        let file = File::options().append(true).create(true).open(&path)?;
        let mut out = io::BufWriter::new(file);
        for &slot in slots {
            out.write_all(&u64::from(slot).to_le_bytes())?;
            out.write_all(&(space.layout.row_bytes() as u64).to_le_bytes())?;
            out.write_all(bytemuck::bytes_of(&space.record(slot)))?;
            out.write_all(bytemuck::cast_slice(&space.row(slot)))?;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(StoreError::io("write", &path))?;
    file::sync_folder_of(&System, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_large_as_asked_for_in_order_and_touches_everything_in_time() {
        let mut counts = [0; 10];
        for seed in 0..1000 {
            let mut items: Vec<usize> = (0..10).collect();
            choose(&mut items, 3, seed * 0x1234_5678_9abc);
            assert_eq!(items.len(), 3);
            assert!(items.is_sorted());
            items.into_iter().for_each(|item| counts[item] += 1);
        }
        assert!(counts.iter().all(|&count| (200..400).contains(&count)), "{counts:?}");
        let mut few = vec![1, 2];
        choose(&mut few, 5, 1);
        assert_eq!(few, [1, 2]);
    }
}
