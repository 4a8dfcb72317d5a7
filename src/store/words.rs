//! Atomic words in huge pages: the table's memory. A look-up hits one place of many megabytes at random; in 4 KiB pages
//! nearly each would also miss the processor's page cache.
#![expect(unsafe_code, reason = "anonymous memory from the system is given a type here; zero bytes are valid words")]

use std::io;
use std::ops::Deref;

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::atomic::AtomicU64;

/// A fixed number of words, all zero at first, beginning at a page.
pub(super) struct Words {
    memory: MmapRaw,
    len: usize,
}

impl Words {
    pub(super) fn zeroed(len: usize) -> io::Result<Self> {
        let memory = MmapRaw::from(MmapOptions::new().len(len.max(1) * size_of::<u64>()).map_anon()?);
        // A kernel without huge pages costs speed, not correctness.
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for the table");
        }
        Ok(Self { memory, len })
    }

    /// The words as bytes, for filling them before anybody else has them.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has `len` words, is readable and writable, lives as long as `self`, and `&mut self` is the
        // only way to it meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr(), self.len * size_of::<u64>()) }
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, so it is aligned; it has `len` words, all of them initialised (anonymous
        // memory is zero), and lives as long as `self`. Shared access is through atomics alone.
        unsafe { std::slice::from_raw_parts(self.memory.as_mut_ptr().cast::<AtomicU64>(), self.len) }
    }
}
