//! x86-64 with AVX2: Intel since Haswell (2013), AMD since Excavator (2015).

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

impl Lanes for Avx2 {
    const WIDTH: usize = 16;
    type Codes = __m256i;
    type Sums = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn load(from: *const i16) -> __m256i {
        _mm256_loadu_si256(from.cast())
    }
    #[inline(always)]
    unsafe fn widen(from: *const i8) -> __m256i {
        _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn add_products(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(sums, _mm256_madd_epi16(a, b))
    }
    #[inline(always)]
    unsafe fn store_totals(to: *mut i32, sums: [__m256i; 4]) {
        store_totals(to, sums);
    }
    #[inline(always)]
    unsafe fn prefetch(line: *const i8) {
        _mm_prefetch::<_MM_HINT_T0>(line);
    }
}

/// Adds neighbours until each total stands alone.
#[inline(always)]
pub(super) unsafe fn store_totals(to: *mut i32, sums: [__m256i; 4]) {
    let pairs = [_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3])];
    let halves = _mm256_hadd_epi32(pairs[0], pairs[1]);
    let totals = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    _mm_storeu_si128(to.cast(), totals);
}
