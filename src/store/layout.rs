//! Where everything stands in a space's file. Each offset is derived from the field before it; `FORMAT.md` draws it.

use super::error::StoreError;
use super::record::RECORD_BYTES;

/// The header's size; the slots begin after it.
pub(super) const HEADER_BYTES: u64 = 4096;
/// Rows begin at a multiple of this: a huge page, so that the matrix can be mapped and uploaded as it is.
const ROWS_ALIGNMENT_BYTES: u64 = 2 << 20;
/// The most slots: their numbers, and one more to mean none, fit in 32 bits with room to spare.
pub(super) const CAPACITY_ENTRIES_MAX: u64 = 1 << 31;
/// The longest vector.
pub(super) const DIMS_MAX: usize = 1 << 16;

/// A slot's number: record `i` and row `i` belong together.
pub(super) type Slot = u32;

/// The offsets that follow from a vector length and a capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) dims: usize,
    pub(super) capacity: u64,
    pub(super) slots_offset: u64,
    pub(super) rows_offset: u64,
    pub(super) file_bytes: u64,
}

impl Layout {
    pub(super) fn new(dims: usize, capacity: u64) -> Result<Self, StoreError> {
        if !(1..=DIMS_MAX).contains(&dims) {
            return Err(StoreError::Dims { dims, dims_max: DIMS_MAX });
        }
        if !(1..=CAPACITY_ENTRIES_MAX).contains(&capacity) {
            return Err(StoreError::Capacity { entries: capacity, entries_max: CAPACITY_ENTRIES_MAX });
        }
        // No overflow: the largest file is below 2^49 bytes.
        let slots_offset = HEADER_BYTES;
        let rows_offset = (slots_offset + capacity * RECORD_BYTES).next_multiple_of(ROWS_ALIGNMENT_BYTES);
        let file_bytes = rows_offset + capacity * dims as u64 * 2;
        Ok(Self { dims, capacity, slots_offset, rows_offset, file_bytes })
    }

    /// Bytes of one row: `dims` little-endian f16.
    pub(super) fn row_bytes(&self) -> usize {
        self.dims * 2
    }

    pub(super) fn record_offset(&self, slot: Slot) -> u64 {
        self.slots_offset + u64::from(slot) * RECORD_BYTES
    }

    pub(super) fn row_offset(&self, slot: Slot) -> u64 {
        self.rows_offset + u64::from(slot) * self.row_bytes() as u64
    }

    /// All slots, from the first.
    pub(super) fn slots(&self) -> std::ops::Range<Slot> {
        0..Slot::try_from(self.capacity).expect("a layout has at most 2^31 slots")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_begin_at_a_huge_page_after_the_last_slot() {
        for (dims, capacity) in [(1, 1), (384, 1_048_576), (1024, 32_704), (1024, 32_705)] {
            let layout = Layout::new(dims, capacity).unwrap();
            assert_eq!(layout.rows_offset % ROWS_ALIGNMENT_BYTES, 0);
            assert!(layout.record_offset(layout.slots().end) <= layout.rows_offset);
            assert!(layout.rows_offset - layout.record_offset(layout.slots().end) < ROWS_ALIGNMENT_BYTES);
            assert_eq!(layout.row_offset(layout.slots().end), layout.file_bytes);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(Layout::new(0, 1), Err(StoreError::Dims { .. })));
        assert!(matches!(Layout::new(DIMS_MAX + 1, 1), Err(StoreError::Dims { .. })));
        assert!(matches!(Layout::new(1, 0), Err(StoreError::Capacity { .. })));
        assert!(matches!(Layout::new(1, u64::MAX), Err(StoreError::Capacity { .. })));
        assert!(Layout::new(DIMS_MAX, CAPACITY_ENTRIES_MAX).is_ok());
    }
}
