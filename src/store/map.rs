//! The file as read-only memory: the one place in the store where the compiler has to take our word.
//!
//! What is dangerous about a mapped file, and why it is all right here:
//!
//! - **Memory that changes under a reference.** Our own writer changes the file by `pwrite` only in slots that no
//!   reader can reach: they are not in the table yet, or were taken out of it under the lock that readers hold while
//!   they look. Other processes must not write: `LOCK` keeps out our own kind, nothing keeps out the rest. Every bit
//!   pattern is a valid `u8`, `f16` and `Record`, and checksums decide what is believed.
//! - **SIGBUS.** A page that the file no longer backs (truncated behind our back, a medium that cannot read) kills the
//!   process on access. We never shorten a file that is mapped: other sizes are made as a new file and renamed.
//!   Disk-full cannot hit a read; a hole reads as zeros, which is a free slot.
//! - **Writes through the map** would meet a full disk as SIGBUS. There are none: the map is read-only, and `pwrite`
//!   answers ENOSPC as an error.
//! - **Two views.** Linux keeps `pwrite` and shared maps of a local file coherent; network file systems may not, and
//!   then a checksum fails and the entry is computed again.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; the head of this module says what keeps it sound")]

use std::fs::File;
use std::io;

use half::f16;
use memmap2::{Advice, Mmap, MmapOptions};

use super::layout::{Layout, Slot};
use super::record::{RECORD_BYTES, Record};

/// A space's file, mapped from its first byte to its last.
pub(super) struct Map {
    bytes: Mmap,
    layout: Layout,
}

impl Map {
    /// Maps a file that is at least as long as its layout says (the caller has made sure).
    pub(super) fn new(file: &File, layout: Layout) -> io::Result<Self> {
        let len = usize::try_from(layout.file_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: nobody changes what a reader can reach and nobody shortens the file: see the head of this module.
        let bytes = unsafe { MmapOptions::new().len(len).map(file)? };
        // Rows are read here and there, so reading ahead would only waste the disk; the slots before them are scanned at
        // open. Advice only: a kernel that refuses costs speed, not correctness.
        let rows = layout.rows_offset as usize;
        if let Err(error) = bytes.advise_range(Advice::Random, rows, len - rows) {
            tracing::debug!(%error, "the kernel takes no advice about the map");
        }
        Ok(Self { bytes, layout })
    }

    /// A slot's record.
    pub(super) fn record(&self, slot: Slot) -> &Record {
        let from = self.layout.record_offset(slot) as usize;
        bytemuck::from_bytes(&self.bytes[from..from + RECORD_BYTES as usize])
    }

    /// A slot's row.
    pub(super) fn row(&self, slot: Slot) -> &[f16] {
        let from = self.layout.row_offset(slot) as usize;
        bytemuck::cast_slice(&self.bytes[from..from + self.layout.row_bytes()])
    }
}
