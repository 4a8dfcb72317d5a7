//! What a processor's vector instructions have to offer for the products to be compiled for it.

/// One instruction set: vectors of `WIDTH` codes.
///
/// # Safety
/// Every function needs a processor that has the instructions, and pointers to as many values as it reads or writes.
/// All are inlined into functions that are compiled for the instruction set; elsewhere they would be slow, not wrong.
pub(super) trait Lanes: Copy + 'static {
    /// Codes in a vector; a divisor of [`super::CODES_ALIGNED`].
    const WIDTH: usize;
    /// A vector of `WIDTH` i16.
    type Codes: Copy;
    /// A vector of i32, in which sums of products gather.
    type Sums: Copy;

    unsafe fn zero() -> Self::Sums;
    unsafe fn load(from: *const i16) -> Self::Codes;
    /// `WIDTH` bytes, each widened to i16 with its sign.
    unsafe fn widen(from: *const i8) -> Self::Codes;
    /// Adds the products of all pairs to the sums, each to one of them.
    unsafe fn add_products(sums: Self::Sums, a: Self::Codes, b: Self::Codes) -> Self::Sums;
    /// Writes the total of each of four vectors.
    unsafe fn store_totals(to: *mut i32, sums: [Self::Sums; 4]);
    /// Has a cache line brought nearer, if the processor cares. The pointer need not point to anything.
    unsafe fn prefetch(line: *const i8);
}
