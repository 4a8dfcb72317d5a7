//! Vectors of four values in plain Rust: for processors without a kernel of their own, and what the others are tested
//! against.

use super::lanes::Lanes;

/// Any processor.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

type F = [f32; 4];
type I = [i32; 4];

#[inline(always)]
fn each<T: Copy, U>(a: [T; 4], b: [T; 4], f: impl Fn(T, T) -> U) -> [U; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Lanes for Scalar {
    const WIDTH: usize = 4;
    const ROWS: usize = 4;
    const HAS_BYTES: bool = true;
    type F = F;
    type I = I;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        [value; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        from.cast::<F>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, a: F) {
        to.cast::<F>().write_unaligned(a);
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        each(a, b, |a, b| a / b)
    }
    /// Rounded twice: a fused one would be a call where the processor has none.
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        each(each(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn power_of_two(a: F) -> F {
        a.map(|a| f32::from_bits(((a as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        (a[0] + a[1]) + (a[2] + a[3])
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
    #[inline(always)]
    unsafe fn zero_i32() -> I {
        [0; 4]
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> I {
        [value; 4]
    }
    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> I {
        from.cast::<I>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn sub_i32(a: I, b: I) -> I {
        each(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn mul_i32(a: I, b: I) -> I {
        each(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn to_f32(a: I) -> F {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    unsafe fn dot_i16(sum: I, a: I, b: I) -> I {
        let low = each(a, b, |a, b| i32::from(a as i16) * i32::from(b as i16));
        let high = each(a, b, |a, b| (a >> 16) * (b >> 16));
        each(sum, each(low, high, i32::wrapping_add), i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: I, a: I, b: I) -> I {
        let dot = |a: i32, b: i32| -> i32 {
            let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
            pairs.map(|(a, b)| i32::from(a) * i32::from(b as i8)).sum()
        };
        each(sum, each(a, b, dot), i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, a: F) {
        to.cast::<[i16; 4]>().write_unaligned(a.map(|a| a.round_ties_even() as i16));
    }
    #[inline(always)]
    unsafe fn store_u8(to: *mut u8, a: F) {
        to.cast::<[u8; 4]>().write_unaligned(a.map(|a| a.round_ties_even() as u8));
    }
}
