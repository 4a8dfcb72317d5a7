//! One bit a slot, set and read by many threads. Who sees a bit set sees what was written before it was set.

use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

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
        word.load(Acquire) & bit != 0
    }

    /// Sets the bit and says whether it was clear. Looks first: a bit that is set already costs no shared write.
    pub(super) fn set(&self, slot: Slot) -> bool {
        let (word, bit) = self.place(slot);
        word.load(Acquire) & bit == 0 && word.fetch_or(bit, AcqRel) & bit == 0
    }

    /// Clears the bit and says whether it was set.
    pub(super) fn clear(&self, slot: Slot) -> bool {
        let (word, bit) = self.place(slot);
        word.load(Acquire) & bit != 0 && word.fetch_and(!bit, AcqRel) & bit != 0
    }

    /// The numbers of the bits that are set, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        self.0.iter().zip((0..).step_by(64)).flat_map(|(word, first)| set_in(word.load(Acquire), first))
    }

    /// The numbers below `end` of the bits that are clear, in order.
    pub(super) fn clear_below(&self, end: Slot) -> impl Iterator<Item = Slot> {
        let clear = self.0.iter().zip((0..).step_by(64)).flat_map(|(word, first)| set_in(!word.load(Acquire), first));
        clear.take_while(move |&slot| slot < end)
    }

    /// How many bits are set.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.load(Acquire).count_ones())).sum()
    }

    /// The number of the last bit that is set.
    pub(super) fn last(&self) -> Option<Slot> {
        let (place, word) = self.0.iter().enumerate().rfind(|(_, word)| word.load(Acquire) != 0)?;
        Some(place as Slot * 64 + word.load(Acquire).ilog2())
    }

    /// Makes all bits what they are in another set of as many.
    pub(super) fn copy_from(&self, other: &Self) {
        self.0.iter().zip(&other.0).for_each(|(word, other)| word.store(other.load(Acquire), Release));
    }

    /// All bits, 64 a word.
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// The numbers of a word's bits that are set, the first of them being `first`.
fn set_in(mut bits: u64, first: Slot) -> impl Iterator<Item = Slot> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(first + bit)
    })
}
