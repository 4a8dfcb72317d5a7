//! Vectors of eight codes in plain Rust: for processors without a kernel of their own, and what the others are tested
//! against.

use super::lanes::Lanes;

/// Any processor.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    const WIDTH: usize = 8;
    type Codes = [i16; 8];
    type Sums = [i32; 8];

    #[inline(always)]
    unsafe fn zero() -> [i32; 8] {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const i16) -> [i16; 8] {
        from.cast::<[i16; 8]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn widen(from: *const i8) -> [i16; 8] {
        from.cast::<[i8; 8]>().read_unaligned().map(i16::from)
    }
    #[inline(always)]
    unsafe fn add_products(mut sums: [i32; 8], a: [i16; 8], b: [i16; 8]) -> [i32; 8] {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
        sums
    }
    #[inline(always)]
    unsafe fn store_totals(to: *mut i32, sums: [[i32; 8]; 4]) {
        let total = |sums: [i32; 8]| sums.into_iter().fold(0, i32::wrapping_add);
        to.cast::<[i32; 4]>().write_unaligned(sums.map(total));
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const i8) {}
}
