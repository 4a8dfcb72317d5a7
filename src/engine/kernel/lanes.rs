//! What a processor's vector instructions have to offer for the kernels to be compiled for it.

/// One instruction set: vectors of `WIDTH` 32-bit values.
///
/// # Safety
/// Every function needs a processor that has the instructions, and pointers to as many values as it reads or writes.
/// All are inlined into functions that are compiled for the instruction set; elsewhere they would be slow, not wrong.
pub(super) trait Lanes: Copy + 'static {
    /// Values in a vector.
    const WIDTH: usize;
    /// Rows of a tile: as many as leave its sums, two vectors of weights and one of input in registers.
    const ROWS: usize;
    /// Whether there is a product of unsigned by signed bytes that does not saturate.
    const HAS_BYTES: bool;
    /// A vector of f32.
    type F: Copy;
    /// A vector of i32.
    type I: Copy;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, a: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a × b + c`, rounded once where the processor can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// 2 to the power of an integer between −126 and 127.
    unsafe fn power_of_two(a: Self::F) -> Self::F;
    /// The sum of all lanes, in an order of its own.
    unsafe fn sum(a: Self::F) -> f32;
    /// The largest lane.
    unsafe fn largest(a: Self::F) -> f32;

    unsafe fn zero_i32() -> Self::I;
    unsafe fn splat_i32(value: i32) -> Self::I;
    unsafe fn load_i32(from: *const i32) -> Self::I;
    unsafe fn sub_i32(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn mul_i32(a: Self::I, b: Self::I) -> Self::I;
    /// To the nearest f32.
    unsafe fn to_f32(a: Self::I) -> Self::F;
    /// `sum + a₀ × b₀ + a₁ × b₁` in each lane, whose 32 bits hold two i16 in `a` and `b`.
    unsafe fn dot_i16(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// `sum + Σ aᵢ × bᵢ` in each lane, whose 32 bits hold four u8 in `a` and four i8 in `b`.
    unsafe fn dot_bytes(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Has a cache line brought nearer, if the processor cares. The pointer need not point to anything.
    unsafe fn prefetch(line: *const u8);
    /// Rounds to the nearest integers, which fit i16.
    unsafe fn store_i16(to: *mut i16, a: Self::F);
    /// Rounds to the nearest integers, which are between 0 and 255.
    unsafe fn store_u8(to: *mut u8, a: Self::F);
}
