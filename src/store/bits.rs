//! One bit a slot, set and read by many threads. No bit orders other memory: locks do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::layout::Slot;

/// A fixed number of bits, all clear at first.
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    pub(super) fn new(len: u64) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn place(&self, slot: Slot) -> (&AtomicU64, u64) {
        (&self.0[slot as usize / 64], 1 << (slot % 64))
    }

    pub(super) fn get(&self, slot: Slot) -> bool {
        let (word, bit) = self.place(slot);
        word.load(Relaxed) & bit != 0
    }

    /// Sets the bit and says whether it was clear. Looks first: a bit that is set already costs no shared write.
    pub(super) fn set(&self, slot: Slot) -> bool {
        let (word, bit) = self.place(slot);
        word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0
    }

    /// Clears the bit and says whether it was set.
    pub(super) fn clear(&self, slot: Slot) -> bool {
        let (word, bit) = self.place(slot);
        word.load(Relaxed) & bit != 0 && word.fetch_and(!bit, Relaxed) & bit != 0
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }
}
