//! 64-bit ARM. NEON is part of every such processor.

use std::arch::aarch64::*;

use super::lanes::Lanes;

/// NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon;

impl Lanes for Neon {
    const WIDTH: usize = 4;
    const ROWS: usize = 12;
    /// Its dot product multiplies bytes of one sign each; the bytes are multiplied as i16 instead.
    const HAS_BYTES: bool = false;
    type F = float32x4_t;
    type I = int32x4_t;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        vdupq_n_f32(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        vld1q_f32(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, a: float32x4_t) {
        vst1q_f32(to, a);
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vsubq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vdivq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmaxq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vminq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn round(a: float32x4_t) -> float32x4_t {
        vrndnq_f32(a)
    }
    #[inline(always)]
    unsafe fn power_of_two(a: float32x4_t) -> float32x4_t {
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(127))))
    }
    #[inline(always)]
    unsafe fn sum(a: float32x4_t) -> f32 {
        vaddvq_f32(a)
    }
    #[inline(always)]
    unsafe fn largest(a: float32x4_t) -> f32 {
        vmaxvq_f32(a)
    }
    #[inline(always)]
    unsafe fn zero_i32() -> int32x4_t {
        vdupq_n_s32(0)
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> int32x4_t {
        vdupq_n_s32(value)
    }
    #[inline(always)]
    unsafe fn load_i32(from: *const i32) -> int32x4_t {
        vld1q_s32(from)
    }
    #[inline(always)]
    unsafe fn sub_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        vsubq_s32(a, b)
    }
    #[inline(always)]
    unsafe fn mul_i32(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        vmulq_s32(a, b)
    }
    #[inline(always)]
    unsafe fn to_f32(a: int32x4_t) -> float32x4_t {
        vcvtq_f32_s32(a)
    }
    #[inline(always)]
    unsafe fn dot_i16(sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
        let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
        vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
    }
    #[inline(always)]
    unsafe fn dot_bytes(_: int32x4_t, _: int32x4_t, _: int32x4_t) -> int32x4_t {
        unreachable!("bytes are multiplied as i16 here")
    }
    /// Left to the processor: the instruction has no stable name in Rust.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn store_i16(to: *mut i16, a: float32x4_t) {
        vst1_s16(to, vqmovn_s32(vcvtnq_s32_f32(a)));
    }
    #[inline(always)]
    unsafe fn store_u8(to: *mut u8, a: float32x4_t) {
        let mut values = [0i32; 4];
        vst1q_s32(values.as_mut_ptr(), vcvtnq_s32_f32(a));
        to.cast::<[u8; 4]>().write_unaligned(values.map(|value| value.clamp(0, 255) as u8));
    }
}
