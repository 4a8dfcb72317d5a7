//! The file as read-only memory: the one place in the store where the compiler has to take our word.
//!
//! What is dangerous about a mapped file, and why it is all right here:
//!
//! - **Memory that changes under a reference.** Our own writer changes the file by `pwrite` only in slots that no
//!   reader can reach: they are not in the table yet, or were taken out of it before every reader of that time had left
//!   ([`super::readers`]). Other processes must not write: `LOCK` keeps out our own kind, nothing keeps out the rest. Every bit
//!   pattern is a valid `u8`, `f16` and `Record`, and checksums decide what is believed.
//! - **SIGBUS.** A page that the file no longer backs (truncated behind our back, a medium that cannot read) would kill
//!   the process on access. [`super::fault`] makes zeros of it, and a count that readers compare. We ourselves never shorten
//!   a file that is mapped: other sizes are made as a new file and renamed. Disk-full cannot hit a read; a hole reads as
//!   zeros, which is a free slot.
//! - **Writes through the map** would meet a full disk as SIGBUS. There are none: the map is read-only, and `pwrite`
//!   answers ENOSPC as an error.
//! - **Huge pages.** Reads go to random places, and in 4 KiB pages each would also miss the processor's page tables. The
//!   system backs a file with huge pages where it reads a whole one's worth at once, not where it is written piece by
//!   piece; so [`Map::prepare`] has it read what the writer is about to write for the first time: a hole, in memory only.
//! - **Two views.** Linux keeps `pwrite` and shared maps of a local file coherent; network file systems may not, and
//!   then a checksum fails and the entry is computed again.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; the head of this module says what keeps it sound")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use half::f16;
use memmap2::{Advice, MmapOptions};

use super::bits::Bits;
use super::fault::Guarded;
use super::header::Header;
use super::layout::{Layout, Slot};
use super::prefetch::prefetch;
use super::record::{RECORD_BYTES, Record};
use crate::domain::ModelVersion;

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// A file below this is mapped in small pages: what is not used of its huge pages would be more than what is.
const HUGE_FILE_BYTES_MIN: usize = 64 << 20;

/// A space's file, mapped from its first byte to its last.
pub(super) struct Map {
    bytes: Guarded,
    layout: Layout,
    /// Huge pages that were asked for, if the file is mapped in such.
    prepared: Option<Bits>,
    path: PathBuf,
    /// Lost pages that were spoken of.
    reported: AtomicU64,
    /// Lost pages that were there when the file was last mended.
    mended: AtomicU64,
}

impl Map {
    /// Maps a file that is at least as long as its layout says (the caller has made sure).
    pub(super) fn new(file: &File, path: &Path, layout: Layout) -> io::Result<Self> {
        let len = usize::try_from(layout.file_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: nobody changes what a reader can reach and nobody shortens the file: see the head of this module.
        let bytes = unsafe { MmapOptions::new().len(len).map(file)? };
        let rows = layout.rows_offset as usize;
        // Advice only: a kernel that refuses costs speed, not correctness.
        let is_huge = HUGE_FILE_BYTES_MIN <= len && len <= huge_file_bytes_max() && advise_huge_pages(&bytes);
        if let Err(error) = bytes.advise_range(Advice::Random, rows, len - rows) {
            tracing::debug!(%error, "the kernel takes no advice about the map");
        }
        Ok(Self {
            bytes: Guarded::new(bytes, file)?,
            layout,
            prepared: is_huge.then(|| Bits::new(len.div_ceil(HUGE_PAGE_BYTES) as u64)),
            path: path.to_owned(),
            reported: AtomicU64::new(0),
            mended: AtomicU64::new(0),
        })
    }

    /// How often pages were found lost under the map since it was made: their bytes read as zero. To be asked before and
    /// after each batch of reads; equal answers mean that none was lost between them.
    #[inline]
    pub(super) fn faults(&self) -> u64 {
        let faults = self.bytes.faults();
        if faults != self.reported.load(Relaxed) {
            self.report(faults);
        }
        faults
    }

    /// Whether there was any.
    #[inline]
    pub(super) fn has_faulted(&self) -> bool {
        self.bytes.has_faulted()
    }

    /// Before a write: a file that was cut gets back its length and its header, and is shown again. What was cut off is holes
    /// then; what is written from now on is read. Costs a load as long as nothing was lost.
    ///
    /// # Errors
    /// When the system refuses; it is tried again before the next write.
    pub(super) fn mend(&self, file: &File, model: &ModelVersion) -> io::Result<()> {
        if !self.has_faulted() {
            return Ok(());
        }
        let faults = self.bytes.faults();
        if faults != self.mended.load(Relaxed) {
            if file.metadata()?.len() < self.layout.file_bytes {
                file.set_len(self.layout.file_bytes)?;
            }
            file.write_all_at(Header::new(&self.layout, model).as_bytes(), 0)?;
            self.bytes.restore()?;
            self.mended.store(faults, Relaxed);
            tracing::warn!(path = %self.path.display(), "the file has its length again");
        }
        Ok(())
    }

    /// Before a write: has the system make huge pages of what is written for the first time. A hint: where it cannot, reads
    /// are slower.
    pub(super) fn prepare(&self, offset: u64, len: usize) {
        let (Some(prepared), false) = (&self.prepared, len == 0) else { return };
        let (first, last) = (offset as usize / HUGE_PAGE_BYTES, (offset as usize + len - 1) / HUGE_PAGE_BYTES);
        for page in first..=last {
            if prepared.set(page as Slot) {
                populate(self.bytes.map(), page * HUGE_PAGE_BYTES);
            }
        }
    }

    #[cold]
    fn report(&self, faults: u64) {
        if self.reported.swap(faults, Relaxed) != faults {
            tracing::error!(path = %self.path.display(), faults, "the file was cut short or cannot be read: what it held there is computed again");
        }
    }

    /// Asks the processor for a slot's record.
    #[inline]
    pub(super) fn prefetch_record(&self, slot: Slot) {
        prefetch(std::slice::from_ref(self.record(slot)));
    }

    /// Asks the processor for a slot's row.
    #[inline]
    pub(super) fn prefetch_row(&self, slot: Slot) {
        prefetch(self.row(slot));
    }

    /// A slot's record.
    #[inline]
    pub(super) fn record(&self, slot: Slot) -> &Record {
        let from = self.layout.record_offset(slot) as usize;
        bytemuck::from_bytes(&self.bytes[from..from + RECORD_BYTES as usize])
    }

    /// A slot's row.
    #[inline]
    pub(super) fn row(&self, slot: Slot) -> &[f16] {
        let from = self.layout.row_offset(slot) as usize;
        bytemuck::cast_slice(&self.bytes[from..from + self.layout.row_bytes()])
    }
}

/// The longest file that is mapped in huge pages: half of the memory. What does not fit there is read from the medium, and
/// 2 MiB instead of 4 KiB each time.
#[cfg(target_os = "linux")]
fn huge_file_bytes_max() -> usize {
    let memory = rustix::system::sysinfo();
    usize::try_from(memory.totalram / 2).unwrap_or(usize::MAX).saturating_mul(memory.mem_unit as usize)
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(map: &memmap2::Mmap) -> bool {
    map.advise(Advice::HugePage).inspect_err(|error| tracing::debug!(%error, "no huge pages for the map")).is_ok()
}

#[cfg(target_os = "linux")]
fn populate(map: &memmap2::Mmap, offset: usize) {
    let len = HUGE_PAGE_BYTES.min(map.len() - offset);
    if let Err(error) = map.advise_range(Advice::PopulateRead, offset, len) {
        tracing::debug!(%error, offset, "a huge page was not made");
    }
}

#[cfg(not(target_os = "linux"))]
fn huge_file_bytes_max() -> usize {
    0
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &memmap2::Mmap) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn populate(_: &memmap2::Mmap, _: usize) {}
