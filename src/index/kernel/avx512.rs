//! x86-64 with AVX-512 (F, BW), and with its dot products of integers (VNNI): Intel servers since Skylake (2017) and
//! Cascade Lake (2019), AMD since Zen 4 (2022).
//!
//! Of VNNI it is the product of i16 that is used: the one of bytes wants a query of bytes, whose error would double the
//! bounds, to save widening that several queries share.

use std::arch::x86_64::*;

use super::avx2;
use super::lanes::Lanes;

/// AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni;

macro_rules! lanes {
    ($name:ty, $add_products:expr) => {
        impl Lanes for $name {
            const WIDTH: usize = 32;
            type Codes = __m512i;
            type Sums = __m512i;

            #[inline(always)]
            unsafe fn zero() -> __m512i {
                _mm512_setzero_si512()
            }
            #[inline(always)]
            unsafe fn load(from: *const i16) -> __m512i {
                _mm512_loadu_si512(from.cast())
            }
            #[inline(always)]
            unsafe fn widen(from: *const i8) -> __m512i {
                _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()))
            }
            #[inline(always)]
            unsafe fn add_products(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
                $add_products(sums, a, b)
            }
            #[inline(always)]
            unsafe fn store_totals(to: *mut i32, sums: [__m512i; 4]) {
                let [a, b, c, d] = sums;
                avx2::store_totals(to, [halve(a), halve(b), halve(c), halve(d)]);
            }
            #[inline(always)]
            unsafe fn prefetch(line: *const i8) {
                _mm_prefetch::<_MM_HINT_T0>(line);
            }
        }
    };
}

#[inline(always)]
unsafe fn halve(sums: __m512i) -> __m256i {
    _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums))
}

#[inline(always)]
unsafe fn multiply_then_add(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(sums, _mm512_madd_epi16(a, b))
}

lanes!(Avx512, multiply_then_add);
lanes!(Avx512Vnni, _mm512_dpwssd_epi32);
