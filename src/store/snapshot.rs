//! What a clean close leaves so that the next open need not read the slot region: the table and which slots are live.
//!
//! It is believed only if it was made for exactly the state of the space's file: the file's length and time of change
//! are in it, and before the first write of the next session it is removed, and the folder synced. A crash therefore finds
//! none, and one that is there though it should not be (a file put back from elsewhere) is not believed. It is never
//! synced itself: its checksum tells, and without it open reads the slot region as ever.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use bytemuck::{Pod, Zeroable};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::disk::Files;
use super::layout::Slot;
use super::record::SEQUENCE_MAX;
use super::space::Space;

const MAGIC: [u8; 8] = *b"vecmemot";
const VERSION: u64 = 1;

/// What the writer remembers across a clean close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) fresh: Slot,
    pub(super) last_sequence: u64,
    pub(super) earliest_expiry: u32,
    pub(super) pinned: u64,
}

/// As on disk, little-endian; the packed table and the live bits follow.
#[derive(Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: u64,
    model: [u8; 32],
    dims: u64,
    capacity: u64,
    space_bytes: u64,
    space_changed_seconds: u64,
    space_changed_nanoseconds: u64,
    entries: u64,
    fresh: u64,
    last_sequence: u64,
    earliest_expiry: u64,
    pinned: u64,
    table_bytes: u64,
    live_bytes: u64,
    body_checksum: u64,
    /// Over everything before it.
    checksum: u64,
}

const HEAD_BYTES: u64 = size_of::<Head>() as u64;

impl Head {
    fn sealed(mut self) -> Self {
        self.checksum = self.computed_checksum();
        self
    }

    fn computed_checksum(&self) -> u64 {
        xxh3_64(&bytemuck::bytes_of(self)[..size_of::<Self>() - size_of::<u64>()])
    }

    /// The part that says which state of which space this is.
    fn of(space: &Space, file: &Metadata) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            model: *space.model.as_bytes(),
            dims: space.layout.dims as u64,
            capacity: space.layout.capacity,
            space_bytes: file.len(),
            space_changed_seconds: file.mtime().cast_unsigned(),
            space_changed_nanoseconds: file.mtime_nsec().cast_unsigned(),
            live_bytes: size_of_val(space.live.words()) as u64,
            ..Self::zeroed()
        }
    }
}

/// Where a space's snapshot is.
pub(super) fn path_for(space: &Path) -> PathBuf {
    space.with_extension("table")
}

/// Writes a snapshot beside the space's file, which must not change any more.
pub(super) fn write(space: &Space, file: &File, remembered: Remembered) -> io::Result<()> {
    let table = space.table.pack(space.layout.capacity);
    let live: Vec<u64> = space.live.words().iter().map(|word| word.load(Relaxed)).collect();
    let mut body = Xxh3::new();
    body.update(&table);
    body.update(bytemuck::cast_slice(&live));
    let head = Head {
        entries: space.table.len(),
        fresh: u64::from(remembered.fresh),
        last_sequence: remembered.last_sequence,
        earliest_expiry: u64::from(remembered.earliest_expiry),
        pinned: remembered.pinned,
        table_bytes: table.len() as u64,
        body_checksum: body.digest(),
        ..Head::of(space, &file.metadata()?)
    }
    .sealed();
    let path = path_for(&space.path);
    let sibling = path.with_extension("table.new");
    let live_offset = HEAD_BYTES + head.table_bytes;
    let disk = space.files.create(&sibling, live_offset + head.live_bytes)?.disk;
    disk.write_all_at(bytemuck::bytes_of(&head), 0)?;
    disk.write_all_at(&table, HEAD_BYTES)?;
    disk.write_all_at(bytemuck::cast_slice(&live), live_offset)?;
    space.files.rename(&sibling, &path)
}

/// Fills the table and the live bits of a space that nobody reads yet, if there is a snapshot of its present state.
pub(super) fn read(space: &mut Space, file: &File) -> Option<Remembered> {
    let mut snapshot = File::open(path_for(&space.path)).ok()?;
    let mut head = Head::zeroed();
    snapshot.read_exact(bytemuck::bytes_of_mut(&mut head)).ok()?;
    let expected = Head {
        entries: head.entries,
        fresh: head.fresh,
        last_sequence: head.last_sequence,
        earliest_expiry: head.earliest_expiry,
        pinned: head.pinned,
        table_bytes: head.table_bytes,
        body_checksum: head.body_checksum,
        ..Head::of(space, &file.metadata().ok()?)
    };
    if head != expected.sealed() {
        tracing::info!(path = %space.path.display(), "the table kept at the last close is of another state: reading the slots");
        return None;
    }
    let Some(live) = read_body(space, &head, snapshot) else {
        tracing::warn!(path = %space.path.display(), "the table kept at the last close is damaged: reading the slots");
        space.table.clear();
        return None;
    };
    for (word, &bits) in space.live.words().iter().zip(&live) {
        word.store(bits, Relaxed);
    }
    let remembered = Remembered {
        fresh: Slot::try_from(head.fresh).unwrap_or(Slot::MAX),
        last_sequence: head.last_sequence,
        earliest_expiry: u32::try_from(head.earliest_expiry).unwrap_or(0),
        pinned: head.pinned,
    };
    // Checksums tell what has changed since it was written, not whether it could have been written.
    let (live, last) = (space.live.count(), space.live.last());
    let possible = head.entries == live
        && head.entries == space.table.len()
        && head.pinned <= live
        && head.fresh <= space.layout.capacity
        && last.is_none_or(|last| last < remembered.fresh)
        && head.last_sequence <= SEQUENCE_MAX;
    if !possible {
        tracing::warn!(path = %space.path.display(), "the table kept at the last close is impossible: reading the slots");
        space.table.clear();
        space.live.words().iter().for_each(|word| word.store(0, Relaxed));
        return None;
    }
    Some(remembered)
}

/// Fills the table. Answers with the live bits; `None` if what follows the head is not what was written there.
fn read_body(space: &mut Space, head: &Head, mut snapshot: File) -> Option<Vec<u64>> {
    if head.table_bytes > space.table.packed_bytes_max() {
        return None;
    }
    let mut body = vec![0; (head.table_bytes + head.live_bytes) as usize];
    snapshot.read_exact(&mut body).ok()?;
    if xxh3_64(&body) != head.body_checksum {
        return None;
    }
    let (table, live) = body.split_at(head.table_bytes as usize);
    space.table.unpack(space.layout.capacity, table)?;
    let words = live.as_chunks().0;
    Some(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// Removes what a former close has left. When this returns, no crash brings it back.
pub(super) fn remove(files: &dyn Files, space: &Path) -> io::Result<()> {
    match files.remove(&path_for(space)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // One that is not there may have been removed by an attempt whose sync failed.
        _ => files.sync_folder(space.parent().unwrap_or(Path::new("."))),
    }
}
