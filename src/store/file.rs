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

use bytemuck::Zeroable;
use half::f16;

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

/// Opens or makes the file of a model.
pub(super) fn open(folder: &Path, model: &ModelVersion, layout: &Layout) -> Result<Opened, StoreError> {
    let path = folder.join(format!("{}.space", short_name(model)));
    let opened = |file, put_aside, damaged| Opened { file, path: path.clone(), put_aside, damaged };
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(opened(publish(&begin(&path, model, layout)?, &path)?, None, 0));
        }
        Err(source) => return Err(StoreError::Io { operation: "open", path, source }),
    };
    let (found, found_model) = match read_header(&file).map_err(StoreError::io("read the header of", &path))? {
        Ok(found) => found,
        Err(HeaderFault::Newer(found)) => {
            return Err(StoreError::NewerFormat { path, found, supported: FORMAT_VERSION });
        }
        Err(HeaderFault::Damaged(why)) => {
            let note = put_aside(&path, why)?;
            return Ok(opened(publish(&begin(&path, model, layout)?, &path)?, Some(note), 0));
        }
    };
    if found_model != *model {
        return Err(StoreError::OtherModel { path, found: found_model, expected: *model });
    }
    if found.dims != layout.dims {
        return Err(StoreError::OtherDims { path, found: found.dims, expected: layout.dims });
    }
    if found.capacity != layout.capacity {
        let sibling = begin(&path, model, layout)?;
        let damaged = copy(&file, &found, &path, &sibling, layout)?;
        return Ok(opened(publish(&sibling, &path)?, None, damaged));
    }
    let len = file.metadata().map_err(StoreError::io("examine", &path))?.len();
    if len < layout.file_bytes {
        tracing::warn!(path = %path.display(), len, expected = layout.file_bytes, "the file was cut short: entries are lost");
        file.set_len(layout.file_bytes).map_err(StoreError::io("lengthen", &path))?;
    }
    Ok(opened(file, None, 0))
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
    file: File,
    path: PathBuf,
}

fn begin(path: &Path, model: &ModelVersion, layout: &Layout) -> Result<Sibling, StoreError> {
    let path = path.with_extension("space.new");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(StoreError::io("create", &path))?;
    file.set_len(layout.file_bytes).map_err(StoreError::io("lengthen", &path))?;
    file.write_all_at(Header::new(layout, model).as_bytes(), 0)
        .map_err(StoreError::io("write the header of", &path))?;
    Ok(Sibling { file, path })
}

/// Syncs a sibling and gives it the final name.
fn publish(sibling: &Sibling, path: &Path) -> Result<File, StoreError> {
    sibling.file.sync_all().map_err(StoreError::io("sync", &sibling.path))?;
    std::fs::rename(&sibling.path, path).map_err(StoreError::io("rename", &sibling.path))?;
    sync_folder_of(path)?;
    sibling.file.try_clone().map_err(StoreError::io("open", path))
}

/// Renames what cannot be used to `<name>.damaged-<n>`, and says so in one line.
pub(super) fn put_aside(path: &Path, why: &str) -> Result<String, StoreError> {
    let name = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    let aside =
        (1..=u32::MAX).map(name).find(|aside| !aside.exists()).expect("no folder has four thousand million files");
    std::fs::rename(path, &aside).map_err(StoreError::io("put aside", path))?;
    sync_folder_of(path)?;
    let note = format!("{} was put aside as {}: {why}", path.display(), aside.display());
    tracing::warn!("{note}; an empty one takes its place");
    Ok(note)
}

fn sync_folder_of(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().expect("a file of the store is in its folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", folder))
}

/// Copies the newest live entries into an empty space of another capacity, sealed as they were. Answers how many were
/// damaged and stayed behind.
fn copy(from: &File, old: &Layout, path: &Path, to: &Sibling, new: &Layout) -> Result<usize, StoreError> {
    let mut kept = newest_entries(from, old).map_err(StoreError::io("read", path))?;
    let excess = kept.len().saturating_sub(new.slots().len());
    kept.drain(..excess);
    tracing::info!(path = %path.display(), kept = kept.len(), left = excess, "the capacity has changed: entries move");

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
        to.file.write_all_at(bytemuck::cast_slice(&rows), new.row_offset(next)).map_err(failed("write rows to"))?;
        to.file
            .write_all_at(bytemuck::cast_slice(&records), new.record_offset(next))
            .map_err(failed("write records to"))?;
        next += count;
        records.clear();
        rows.clear();
    }
    Ok(damaged)
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
