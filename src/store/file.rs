//! A space's file: found, made, resized or put aside. Runs at open, before anything is mapped.
//!
//! A file is made under a sibling's name, synced, renamed, and the folder synced: under the final name there is always
//! a whole file or none. What is damaged beyond use is renamed, never deleted, and a new file is begun: losing a cache
//! costs recomputation, refusing to start costs an outage. A file of a newer format is left alone and refused.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Zeroable;
use half::f16;

use super::disk::{self, Disk, Files};
use super::error::StoreError;
use super::header::{FORMAT_VERSION, Header, HeaderFault};
use super::layout::{HEADER_BYTES, Layout, Slot};
use super::record::{RECORD_BYTES, Record};
use crate::domain::{Key, ModelVersion};

/// How many entries a resize moves at a time.
const ENTRIES_AT_ONCE: usize = 1024;

/// A file as its layout says: whole, and of the wanted capacity.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    /// What was put aside, for [`super::Info`].
    pub(super) put_aside: Option<String>,
    /// Damaged entries that a resize left behind.
    pub(super) damaged: usize,
}

/// The short name of a model: the beginning of its version in hex.
pub(super) fn short_name(model: &ModelVersion) -> String {
    model.to_string()[..16].to_owned()
}

/// Where what others derive from a space is kept.
pub(super) fn derived_for(space: &Path) -> PathBuf {
    space.with_extension("derived")
}

/// Where a model's file is.
pub(super) fn path_of(folder: &Path, model: &ModelVersion) -> PathBuf {
    folder.join(format!("{}.space", short_name(model)))
}

/// Opens or makes the file of a model.
pub(super) fn open(
    files: &dyn Files,
    folder: &Path,
    model: &ModelVersion,
    layout: &Layout,
) -> Result<Opened, StoreError> {
    let path = path_of(folder, model);
    let opened =
        |disk::Opened { file, disk }, put_aside, damaged| Opened { file, disk, path: path.clone(), put_aside, damaged };
    let begin = || begin(files, &path, model, layout);
    let found = match files.open(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(opened(publish(files, begin()?, &path)?, None, 0));
        }
        Err(source) => return Err(StoreError::Io { operation: "open", path, source }),
    };
    let (old, found_model) = match read_header(&found.file).map_err(StoreError::io("read the header of", &path))? {
        Ok(found) => found,
        Err(HeaderFault::Newer(found)) => {
            return Err(StoreError::NewerFormat { path, found, supported: FORMAT_VERSION });
        }
        Err(HeaderFault::Damaged(why)) => {
            let note = put_aside(files, &path, why)?;
            return Ok(opened(publish(files, begin()?, &path)?, Some(note), 0));
        }
    };
    if found_model != *model {
        return Err(StoreError::OtherModel { path, found: found_model, expected: *model });
    }
    if old.dims != layout.dims {
        return Err(StoreError::OtherDims { path, found: old.dims, expected: layout.dims });
    }
    if old.capacity != layout.capacity {
        let sibling = begin()?;
        let Copied { kept, left, damaged } = copy(&found.file, &old, &path, &sibling, layout)?;
        tracing::info!(path = %path.display(), kept, left, damaged, "the capacity has changed: entries have moved");
        return Ok(opened(publish(files, sibling, &path)?, None, damaged));
    }
    let len = found.file.metadata().map_err(StoreError::io("examine", &path))?.len();
    if len < layout.file_bytes {
        tracing::warn!(path = %path.display(), len, expected = layout.file_bytes, "the file was cut short: entries are lost");
        files.lengthen(&path, layout.file_bytes).map_err(StoreError::io("lengthen", &path))?;
    }
    Ok(opened(found, None, 0))
}

fn read_header(file: &File) -> io::Result<Result<(Layout, ModelVersion), HeaderFault>> {
    let mut bytes = [0; HEADER_BYTES as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::read(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err(HeaderFault::Damaged("it is shorter than a header")))
        }
        Err(error) => Err(error),
    }
}

/// An empty space beside its final place.
struct Sibling {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

fn begin(files: &dyn Files, path: &Path, model: &ModelVersion, layout: &Layout) -> Result<Sibling, StoreError> {
    let path = path.with_extension("space.new");
    let disk = files.create(&path, layout.file_bytes).map_err(StoreError::io("create", &path))?.disk;
    disk.write_all_at(Header::new(layout, model).as_bytes(), 0)
        .map_err(StoreError::io("write the header of", &path))?;
    Ok(Sibling { disk, path })
}

/// Syncs a sibling and gives it the final name.
fn publish(files: &dyn Files, sibling: Sibling, path: &Path) -> Result<disk::Opened, StoreError> {
    sibling.disk.sync_data().map_err(StoreError::io("sync", &sibling.path))?;
    files.rename(&sibling.path, path).map_err(StoreError::io("rename", &sibling.path))?;
    sync_folder_of(files, path)?;
    files.open(path).map_err(StoreError::io("open", path))
}

/// Renames what cannot be used to `<name>.damaged-<n>`, and says so in one line.
pub(super) fn put_aside(files: &dyn Files, path: &Path, why: &str) -> Result<String, StoreError> {
    let name = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    let aside =
        (1..=u32::MAX).map(name).find(|aside| !aside.exists()).expect("no folder has four thousand million files");
    files.rename(path, &aside).map_err(StoreError::io("put aside", path))?;
    sync_folder_of(files, path)?;
    let note = format!("{} was put aside as {}: {why}", path.display(), aside.display());
    tracing::warn!("{note}; an empty one takes its place");
    Ok(note)
}

/// Makes the name of a file last.
pub(super) fn sync_folder_of(files: &dyn Files, path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().expect("a file of the store is in its folder");
    files.sync_folder(folder).map_err(StoreError::io("sync", folder))
}

/// The slots that may hold anything: those in parts of the file that are not holes. All of them where the file system does
/// not tell.
pub(super) fn used_slots(file: &File, layout: &Layout) -> Vec<std::ops::Range<Slot>> {
    used(file, layout.slots_offset..layout.record_offset(layout.slots().end), RECORD_BYTES)
}

/// The slots whose rows may hold anything, likewise.
pub(super) fn used_rows(file: &File, layout: &Layout) -> Vec<std::ops::Range<Slot>> {
    used(file, layout.rows_offset..layout.file_bytes, layout.row_bytes() as u64)
}

/// Which items of a stride, in a part of a file, may hold anything. An item that two ranges share is in the first of them.
pub(super) fn used(file: &File, part: std::ops::Range<u64>, stride: u64) -> Vec<std::ops::Range<Slot>> {
    let mut ranges: Vec<std::ops::Range<Slot>> = Vec::new();
    let (mut from, end) = (part.start, part.end);
    let all = 0..((end - from) / stride) as Slot;
    while from < end {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
            Ok(data) if data < end => data,
            // Nothing but a hole from here on.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return vec![all],
        };
        let hole = match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(end),
            Err(_) => return vec![all],
        };
        let first = ((data.max(from) - part.start) / stride) as Slot;
        let first = ranges.last().map_or(first, |last| last.end.max(first));
        ranges.push(first..(hole - part.start).div_ceil(stride) as Slot);
        from = hole;
    }
    ranges
}

/// Makes a space anew with its live entries side by side at the beginning, and puts it in the old one's place. Nobody may
/// have the file open.
pub(super) fn rewrite(files: &dyn Files, path: &Path) -> Result<Copied, StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let (layout, model) =
        read_header(&file).map_err(StoreError::io("read the header of", path))?.map_err(|fault| match fault {
            HeaderFault::Newer(found) => {
                StoreError::NewerFormat { path: path.to_owned(), found, supported: FORMAT_VERSION }
            }
            HeaderFault::Damaged(reason) => StoreError::NotASpace { path: path.to_owned(), reason },
        })?;
    let sibling = begin(files, path, &model, &layout)?;
    let copied = copy(&file, &layout, path, &sibling, &layout)?;
    publish(files, sibling, path)?;
    Ok(copied)
}

/// What became of the entries of a file that was copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub(super) kept: usize,
    /// For want of room.
    pub(super) left: usize,
    /// Left behind as well.
    pub(super) damaged: usize,
}

/// Copies the newest live entries into an empty space, sealed as they were.
fn copy(from: &File, old: &Layout, path: &Path, to: &Sibling, new: &Layout) -> Result<Copied, StoreError> {
    let mut kept = newest_entries(from, old).map_err(StoreError::io("read", path))?;
    let left = kept.len().saturating_sub(new.slots().len());
    kept.drain(..left);

    let mut damaged = 0;
    let mut next = 0;
    let (mut records, mut rows) = (Vec::new(), Vec::new());
    let mut row = vec![f16::ZERO; old.dims];
    for chunk in kept.chunks(ENTRIES_AT_ONCE) {
        for &(_, slot) in chunk {
            let mut record = Record::zeroed();
            read_or_zero(from, bytemuck::bytes_of_mut(&mut record), old.record_offset(slot))
                .and_then(|()| read_or_zero(from, bytemuck::cast_slice_mut(&mut row), old.row_offset(slot)))
                .map_err(StoreError::io("read", path))?;
            if record.is_intact(&row) {
                records.push(record);
                rows.extend_from_slice(&row);
            } else {
                damaged += 1;
            }
        }
        let count = Slot::try_from(records.len()).expect("a chunk is small");
        let failed = |operation| StoreError::io(operation, &to.path);
        to.disk.write_all_at(bytemuck::cast_slice(&rows), new.row_offset(next)).map_err(failed("write rows to"))?;
        to.disk
            .write_all_at(bytemuck::cast_slice(&records), new.record_offset(next))
            .map_err(failed("write records to"))?;
        next += count;
        records.clear();
        rows.clear();
    }
    Ok(Copied { kept: kept.len() - damaged, left, damaged })
}

/// Sequence and slot of each live entry, oldest first; of two with one key, the newer. Reads no further than the file
/// goes, whatever capacity its header claims.
fn newest_entries(file: &File, layout: &Layout) -> io::Result<Vec<(u64, Slot)>> {
    let len = file.metadata()?.len().min(layout.rows_offset);
    let slots = (len.saturating_sub(layout.slots_offset) / RECORD_BYTES).min(layout.capacity) as Slot;
    let mut newest: HashMap<Key, (u64, Slot)> = HashMap::new();
    let mut records = vec![Record::zeroed(); ENTRIES_AT_ONCE];
    for first in (0..slots).step_by(ENTRIES_AT_ONCE) {
        let records = &mut records[..ENTRIES_AT_ONCE.min((slots - first) as usize)];
        file.read_exact_at(bytemuck::cast_slice_mut(records), layout.record_offset(first))?;
        for (record, slot) in records.iter().zip(first..) {
            if record.is_live() {
                let newer = newest.entry(record.key).or_default();
                *newer = (record.sequence(), slot).max(*newer);
            }
        }
    }
    let mut newest: Vec<_> = newest.into_values().collect();
    newest.sort_unstable();
    Ok(newest)
}

/// What the file does not have is zero, as in a hole.
fn read_or_zero(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            bytes.fill(0);
            Ok(())
        }
        other => other,
    }
}
