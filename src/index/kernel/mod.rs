//! Products of rows of bytes with queries of 16-bit words, written once and compiled for every instruction set, of which
//! the best is chosen when the program runs. Sums are of integers, so every instruction set comes to the same.
//!
//! ```text
//! lanes.rs    what an instruction set offers        scalar.rs  avx2.rs  avx512.rs  neon.rs   the sets
//! Kernel      one set's function, with its bounds checked: all that a scan sees
//! ```
//!
//! This is one of the few places with `unsafe` code. What keeps it sound: a [`Kernel`] is only handed out on a processor
//! that has its instructions, and its method checks every length before a pointer is formed.

#![expect(unsafe_code, reason = "vector instructions, on memory whose bounds Kernel's method checks")]
#![allow(unsafe_op_in_unsafe_fn, reason = "the bodies are vector instructions from end to end")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use lanes::Lanes;

/// Rows of a block: a kernel is asked for at most so many at a time.
pub(super) const BLOCK_ROWS: usize = 64;
/// Rows and queries are as many codes long as a multiple of this; a row then fills whole cache lines.
pub(super) const CODES_ALIGNED: usize = 64;
/// Rows and queries multiplied at once: as many sums as leave room in 16 registers.
const TILE_ROWS: usize = 4;
const TILE_QUERIES: usize = 2;
/// How many tiles ahead rows are fetched from memory.
const TILES_AHEAD: usize = 3;

/// Some rows of a matrix, to be multiplied with some queries.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// The matrix: rows of `stride` codes.
    pub(super) codes: &'a [i8],
    /// The length of a row, and of a query.
    pub(super) stride: usize,
    /// Which rows: at most [`BLOCK_ROWS`].
    pub(super) rows: &'a [u16],
    /// Which rows will be asked for next.
    pub(super) next: &'a [u16],
}

/// Products of rows that lie apart: a matrix, which of its rows, a query, what comes of it.
type Gather = unsafe fn(&[i8], &[u32], &[i16], &mut [i32; BLOCK_ROWS]);

/// The functions of one instruction set.
pub(super) struct Kernel {
    /// Its name, such as `avx2`.
    pub(super) name: &'static str,
    multiply: unsafe fn(Block<'_>, &[i16], &mut [[i32; BLOCK_ROWS]]),
    gather: Gather,
    pair: unsafe fn(&[i8], &[i8]) -> i32,
}

/// Compiles the function for an instruction set.
macro_rules! kernel {
    ($kernel:ident, $module:ident, $name:literal, $lanes:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply(block: Block<'_>, queries: &[i16], products: &mut [[i32; BLOCK_ROWS]]) {
                super::multiply::<$lanes>(block, queries, products);
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn gather(codes: &[i8], rows: &[u32], query: &[i16], products: &mut [i32; BLOCK_ROWS]) {
                super::gather::<$lanes>(codes, rows, query, products);
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn pair(a: &[i8], b: &[i8]) -> i32 {
                super::pair::<$lanes>(a, b)
            }

            pub(super) static KERNEL: Kernel = Kernel { name: $name, multiply, gather, pair };
        }
        static $kernel: &Kernel = &$module::KERNEL;
    };
}

kernel!(SCALAR, for_any, "scalar", scalar::Scalar);
#[cfg(target_arch = "x86_64")]
kernel!(AVX2, for_avx2, "avx2", avx2::Avx2, "avx2");
#[cfg(target_arch = "x86_64")]
kernel!(AVX512, for_avx512, "avx512", avx512::Avx512, "avx512f,avx512bw");
#[cfg(target_arch = "x86_64")]
kernel!(AVX512_VNNI, for_avx512_vnni, "avx512-vnni", avx512::Avx512Vnni, "avx512f,avx512bw,avx512vnni");
#[cfg(target_arch = "aarch64")]
kernel!(NEON, for_neon, "neon", neon::Neon, "neon");

impl Kernel {
    /// Those this processor has the instructions of, best first.
    pub(super) fn supported() -> Vec<&'static Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if has_avx512 && is_x86_feature_detected!("avx512vnni") {
                kernels.push(AVX512_VNNI);
            }
            if has_avx512 {
                kernels.push(AVX512);
            }
            if is_x86_feature_detected!("avx2") {
                kernels.push(AVX2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        kernels.push(NEON);
        kernels.push(SCALAR);
        kernels
    }

    /// `products[query][i]` is the product of that query with the block's i-th row. What stands past the rows means nothing.
    ///
    /// The sum of a query's magnitudes must leave room for 127 times as much in an i32; else sums wrap around.
    pub(super) fn multiply(&self, block: Block<'_>, queries: &[i16], products: &mut [[i32; BLOCK_ROWS]]) {
        let Block { codes, stride, rows, .. } = block;
        assert!(stride > 0 && stride.is_multiple_of(CODES_ALIGNED) && rows.len() <= BLOCK_ROWS);
        assert!(rows.iter().all(|&row| (usize::from(row) + 1) * stride <= codes.len()));
        assert!(queries.len() == products.len() * stride);
        // SAFETY: the bounds are checked, and a kernel is handed out only where its instructions are.
        unsafe { (self.multiply)(block, queries, products) };
    }

    /// `products[i]` is the product of the query with the i-th of some rows that lie anywhere in a matrix. What stands past
    /// them means nothing. The matrix's rows are as long as the query, which has room as for [`Self::multiply`].
    pub(super) fn gather(&self, codes: &[i8], rows: &[u32], query: &[i16], products: &mut [i32; BLOCK_ROWS]) {
        let stride = query.len();
        assert!(stride > 0 && stride.is_multiple_of(CODES_ALIGNED) && rows.len() <= BLOCK_ROWS);
        assert!(rows.iter().all(|&row| (row as usize + 1) * stride <= codes.len()));
        // SAFETY: the bounds are checked, and a kernel is handed out only where its instructions are.
        unsafe { (self.gather)(codes, rows, query, products) };
    }

    /// The product of two rows.
    #[inline]
    pub(super) fn pair(&self, a: &[i8], b: &[i8]) -> i32 {
        assert!(a.len() == b.len() && a.len().is_multiple_of(CODES_ALIGNED));
        // SAFETY: the lengths are checked, and a kernel is handed out only where its instructions are.
        unsafe { (self.pair)(a, b) }
    }
}

/// All products of a block: the rows, once here from memory, meet the queries two by two.
#[inline(always)]
unsafe fn multiply<L: Lanes>(block: Block<'_>, queries: &[i16], products: &mut [[i32; BLOCK_ROWS]]) {
    let tiles = block.rows.len().div_ceil(TILE_ROWS);
    for (pair, products) in products.chunks_mut(TILE_QUERIES).enumerate() {
        let queries = queries.as_ptr().add(pair * TILE_QUERIES * block.stride);
        for at in 0..tiles {
            if pair == 0 {
                fetch::<L>(block, (at + TILES_AHEAD) * TILE_ROWS);
            }
            // A tile that is not full has its last row several times.
            let row = |i: usize| block.rows[(at * TILE_ROWS + i).min(block.rows.len() - 1)];
            let rows = [row(0), row(1), row(2), row(3)].map(|row| usize::from(row) * block.stride);
            match products {
                [one] => tile::<L, 1>(block, rows, queries, [one], at * TILE_ROWS),
                [one, other] => tile::<L, 2>(block, rows, queries, [one, other], at * TILE_ROWS),
                _ => unreachable!("chunks of at most two"),
            }
        }
    }
}

/// Sixteen to thirty-two codes a step, of each row and each query.
#[inline(always)]
unsafe fn tile<L: Lanes, const QUERIES: usize>(
    block: Block<'_>,
    rows: [usize; TILE_ROWS],
    queries: *const i16,
    products: [&mut [i32; BLOCK_ROWS]; QUERIES],
    at: usize,
) {
    let codes = block.codes.as_ptr();
    let mut sums = [[L::zero(); TILE_ROWS]; QUERIES];
    for step in (0..block.stride).step_by(L::WIDTH) {
        let mut query_codes = [L::load(queries.add(step)); QUERIES];
        for (query, codes) in query_codes.iter_mut().enumerate().skip(1) {
            *codes = L::load(queries.add(query * block.stride + step));
        }
        for row in 0..TILE_ROWS {
            let row_codes = L::widen(codes.add(rows[row] + step));
            for query in 0..QUERIES {
                sums[query][row] = L::add_products(sums[query][row], row_codes, query_codes[query]);
            }
        }
    }
    for (sums, products) in sums.into_iter().zip(products) {
        L::store_totals(products[at..at + TILE_ROWS].as_mut_ptr(), sums);
    }
}

/// Has the rows of one tile brought nearer, in this block or past its end.
#[inline(always)]
unsafe fn fetch<L: Lanes>(block: Block<'_>, at: usize) {
    for at in at..at + TILE_ROWS {
        let Some(row) = block.rows.get(at).or_else(|| block.next.get(at - block.rows.len())) else { return };
        let row = block.codes.as_ptr().wrapping_add(usize::from(*row) * block.stride);
        for line in (0..block.stride).step_by(64) {
            L::prefetch(row.wrapping_add(line));
        }
    }
}

/// Products of rows that lie apart, each tile fetched while those before it are multiplied.
#[inline(always)]
unsafe fn gather<L: Lanes>(codes: &[i8], rows: &[u32], query: &[i16], products: &mut [i32; BLOCK_ROWS]) {
    let stride = query.len();
    let fetch = |tile: usize| {
        for &row in rows.iter().skip(tile * TILE_ROWS).take(TILE_ROWS) {
            let row = codes.as_ptr().wrapping_add(row as usize * stride);
            for line in (0..stride).step_by(64) {
                L::prefetch(row.wrapping_add(line));
            }
        }
    };
    (0..TILES_AHEAD).for_each(fetch);
    let block = Block { codes, stride, rows: &[], next: &[] };
    for tile in 0..rows.len().div_ceil(TILE_ROWS) {
        fetch(tile + TILES_AHEAD);
        // A tile that is not full has its last row several times.
        let row = |i: usize| rows[(tile * TILE_ROWS + i).min(rows.len() - 1)];
        let rows = [row(0), row(1), row(2), row(3)].map(|row| row as usize * stride);
        self::tile::<L, 1>(block, rows, query.as_ptr(), [products], tile * TILE_ROWS);
    }
}

/// The product of two rows, in four sums.
#[inline(always)]
unsafe fn pair<L: Lanes>(a: &[i8], b: &[i8]) -> i32 {
    let mut sums = [L::zero(); TILE_ROWS];
    let (a, b, codes) = (a.as_ptr(), b.as_ptr(), a.len());
    let mut step = 0;
    while step < codes {
        // CODES_ALIGNED is a multiple of two vectors' codes at least.
        for sum in sums.iter_mut().take((CODES_ALIGNED / L::WIDTH).min(TILE_ROWS)) {
            *sum = L::add_products(*sum, L::widen(a.add(step)), L::widen(b.add(step)));
            step += L::WIDTH;
        }
    }
    let mut totals = [0; TILE_ROWS];
    L::store_totals(totals.as_mut_ptr(), sums);
    totals.into_iter().fold(0, i32::wrapping_add)
}

#[cfg(test)]
mod tests;
