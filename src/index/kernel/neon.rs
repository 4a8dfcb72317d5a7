//! 64-bit ARM. NEON is part of every such processor.

use std::arch::aarch64::*;

use super::lanes::Lanes;

/// NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon;

impl Lanes for Neon {
    const WIDTH: usize = 8;
    type Codes = int16x8_t;
    type Sums = int32x4_t;

    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        vdupq_n_s32(0)
    }
    #[inline(always)]
    unsafe fn load(from: *const i16) -> int16x8_t {
        vld1q_s16(from)
    }
    #[inline(always)]
    unsafe fn widen(from: *const i8) -> int16x8_t {
        vmovl_s8(vld1_s8(from))
    }
    #[inline(always)]
    unsafe fn add_products(sums: int32x4_t, a: int16x8_t, b: int16x8_t) -> int32x4_t {
        vmlal_high_s16(vmlal_s16(sums, vget_low_s16(a), vget_low_s16(b)), a, b)
    }
    #[inline(always)]
    unsafe fn store_totals(to: *mut i32, sums: [int32x4_t; 4]) {
        vst1q_s32(to, vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3])));
    }
    /// Left to the processor: the instruction has no stable name in Rust.
    #[inline(always)]
    unsafe fn prefetch(_: *const i8) {}
}
