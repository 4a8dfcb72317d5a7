//! x86-64 with AVX-512 (F, BW, DQ, VL), and with its dot products of integers (VNNI): Intel servers since Skylake (2017) and
//! Cascade Lake (2019), AMD since Zen 4 (2022).

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni;

macro_rules! lanes {
    ($name:ty, bytes: $bytes:literal, dot_i16: $dot_i16:expr, dot_bytes: $dot_bytes:expr) => {
        impl Lanes for $name {
            const WIDTH: usize = 16;
            const ROWS: usize = 14;
            const HAS_BYTES: bool = $bytes;
            type F = __m512;
            type I = __m512i;

            #[inline(always)]
            unsafe fn splat(value: f32) -> __m512 {
                _mm512_set1_ps(value)
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> __m512 {
                _mm512_loadu_ps(from)
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, a: __m512) {
                _mm512_storeu_ps(to, a);
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                _mm512_add_ps(a, b)
            }
            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                _mm512_sub_ps(a, b)
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                _mm512_mul_ps(a, b)
            }
            #[inline(always)]
            unsafe fn div(a: __m512, b: __m512) -> __m512 {
                _mm512_div_ps(a, b)
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fmadd_ps(a, b, c)
            }
            #[inline(always)]
            unsafe fn max(a: __m512, b: __m512) -> __m512 {
                _mm512_max_ps(a, b)
            }
            #[inline(always)]
            unsafe fn min(a: __m512, b: __m512) -> __m512 {
                _mm512_min_ps(a, b)
            }
            #[inline(always)]
            unsafe fn round(a: __m512) -> __m512 {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            #[inline(always)]
            unsafe fn power_of_two(a: __m512) -> __m512 {
                let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
            }
            #[inline(always)]
            unsafe fn sum(a: __m512) -> f32 {
                _mm512_reduce_add_ps(a)
            }
            #[inline(always)]
            unsafe fn largest(a: __m512) -> f32 {
                _mm512_reduce_max_ps(a)
            }
            #[inline(always)]
            unsafe fn zero_i32() -> __m512i {
                _mm512_setzero_si512()
            }
            #[inline(always)]
            unsafe fn splat_i32(value: i32) -> __m512i {
                _mm512_set1_epi32(value)
            }
            #[inline(always)]
            unsafe fn load_i32(from: *const i32) -> __m512i {
                _mm512_loadu_si512(from.cast())
            }
            #[inline(always)]
            unsafe fn sub_i32(a: __m512i, b: __m512i) -> __m512i {
                _mm512_sub_epi32(a, b)
            }
            #[inline(always)]
            unsafe fn mul_i32(a: __m512i, b: __m512i) -> __m512i {
                _mm512_mullo_epi32(a, b)
            }
            #[inline(always)]
            unsafe fn to_f32(a: __m512i) -> __m512 {
                _mm512_cvtepi32_ps(a)
            }
            #[inline(always)]
            unsafe fn dot_i16(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
                $dot_i16(sum, a, b)
            }
            #[inline(always)]
            unsafe fn dot_bytes(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
                $dot_bytes(sum, a, b)
            }
            #[inline(always)]
            unsafe fn prefetch(line: *const u8) {
                _mm_prefetch::<_MM_HINT_T1>(line.cast());
            }
            #[inline(always)]
            unsafe fn store_i16(to: *mut i16, a: __m512) {
                _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
            }
            #[inline(always)]
            unsafe fn store_u8(to: *mut u8, a: __m512) {
                _mm_storeu_si128(to.cast(), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(a)));
            }
        }
    };
}

#[inline(always)]
unsafe fn multiply_add(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
}

#[inline(always)]
unsafe fn no_bytes(_: __m512i, _: __m512i, _: __m512i) -> __m512i {
    unreachable!("bytes are multiplied as i16 here")
}

lanes!(Avx512, bytes: false, dot_i16: multiply_add, dot_bytes: no_bytes);
lanes!(Avx512Vnni, bytes: true, dot_i16: _mm512_dpwssd_epi32, dot_bytes: _mm512_dpbusd_epi32);
