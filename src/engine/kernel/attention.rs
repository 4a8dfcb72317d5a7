//! Attention within one text, one head at a time.
//!
//! ```text
//! keys, values of all the text's tokens ─► packed as panels
//! a tile of queries: products with all keys ─► softmax, row by row ─► mean of the values by those weights
//! ```

use super::lanes::Lanes;
use super::matrix::{LINE_BYTES, Lines, WIDTH_MAX, tile_f32, with_rows};
use super::rows::exp;

/// One head's attention of some of a text's tokens to all of them.
pub(in crate::engine) struct Attention<'a> {
    /// Queries (scaled), keys and values of all of the text's tokens, side by side: rows of `3 × size`.
    pub(in crate::engine) projections: &'a [f32],
    pub(in crate::engine) size: usize,
    pub(in crate::engine) head: usize,
    pub(in crate::engine) head_size: usize,
    /// The first of the tokens wanted, and how many.
    pub(in crate::engine) first: usize,
    pub(in crate::engine) count: usize,
    /// What is added to a product, by `key − query + (length of this − 1) / 2`.
    pub(in crate::engine) distances: Option<&'a [f32]>,
    /// Rows of `size` values, one for each token wanted; the head's own part of them is written.
    pub(in crate::engine) out: &'a mut [f32],
}

impl Attention<'_> {
    pub(super) fn check(&self) {
        let Self { projections, size, head, head_size, first, count, distances, out } = self;
        let length = self.length();
        assert!(
            projections.len() == length * 3 * size && length > 0 && (head + 1) * head_size <= *size && *head_size > 0
        );
        assert!(first + count <= length && out.len() == count * size);
        assert!(distances.is_none_or(|distances| distances.len() % 2 == 1 && distances.len() >= 2 * length - 1));
    }

    fn length(&self) -> usize {
        self.projections.len() / (3 * self.size)
    }
}

/// Memory that attention needs, kept from call to call.
pub(in crate::engine) struct AttentionScratch {
    keys: Lines<f32>,
    values: Lines<f32>,
    weights: Lines<f32>,
}

impl AttentionScratch {
    pub(in crate::engine) fn new() -> Self {
        Self { keys: Lines::zeroed(0), values: Lines::zeroed(0), weights: Lines::zeroed(0) }
    }
}

/// Computes it.
///
/// # Safety
/// [`Attention::check`] has passed; the processor has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn attend<L: Lanes>(attention: &mut Attention<'_>, scratch: &mut AttentionScratch) {
    let columns = 2 * L::WIDTH;
    let length = attention.length();
    let (size, head_size) = (attention.size, attention.head_size);
    let stride = 3 * size;
    let padded = length.next_multiple_of(columns);
    let padded_head = head_size.next_multiple_of(columns);
    let AttentionScratch { keys, values, weights } = scratch;
    keys.reserve(padded * head_size);
    values.reserve(padded_head * length);
    weights.reserve(padded * L::ROWS);

    let queries = attention.projections.as_ptr().add(attention.head * head_size);
    pack_keys::<L>(queries.add(size), stride, length, head_size, keys);
    pack_values::<L>(queries.add(2 * size), stride, length, head_size, values);

    let mut tile = [0.0f32; 14 * 2 * WIDTH_MAX];
    let mut row = 0;
    while row < attention.count {
        let rows = (attention.count - row).min(L::ROWS);
        let query = queries.add((attention.first + row) * stride);
        for panel in 0..padded / columns {
            let (keys, out) =
                (keys.as_ptr().add(panel * columns * head_size), weights.as_mut_ptr().add(panel * columns));
            with_rows!(rows, L::ROWS, |ROWS| tile_f32::<L, ROWS>(head_size, query, stride, keys, out, padded));
        }
        let mut factors = [0.0f32; 14];
        for (index, factor) in factors.iter_mut().enumerate().take(rows) {
            let own = &mut weights[index * padded..(index + 1) * padded];
            if let Some(distances) = attention.distances {
                let from = (distances.len() - 1) / 2 - (attention.first + row + index);
                add::<L>(own, &distances[from..from + length]);
            }
            *factor = 1.0 / softmax_numerators::<L>(own, length);
        }
        for panel in 0..padded_head / columns {
            let (weights, values) = (weights.as_ptr(), values.as_ptr().add(panel * columns * length));
            let out = tile.as_mut_ptr();
            with_rows!(rows, L::ROWS, |ROWS| tile_f32::<L, ROWS>(length, weights, padded, values, out, columns));
            let kept = columns.min(head_size - panel * columns);
            for (index, &factor) in factors.iter().enumerate().take(rows) {
                let at = (row + index) * size + attention.head * head_size + panel * columns;
                let from = tile.as_mut_ptr().add(index * columns);
                let factor = L::splat(factor);
                let means = [0, 1].map(|half| half * L::WIDTH);
                for at in means {
                    L::store(from.add(at), L::mul(L::load(from.add(at)), factor));
                }
                copy_panel::<L>(from, kept, attention.out[at..at + kept].as_mut_ptr());
            }
        }
        row += rows;
    }
}

/// How many tokens ahead of their use keys and values are brought nearer: they stand far apart, and no processor guesses where.
const AHEAD: usize = 8;

/// Keys as panels of two vectors of tokens: each token's values stand below each other; tokens past the last are zeros.
#[inline(always)]
unsafe fn pack_keys<L: Lanes>(from: *const f32, stride: usize, length: usize, head_size: usize, to: &mut [f32]) {
    let columns = 2 * L::WIDTH;
    for token in 0..length {
        bring_nearer::<L>(from.wrapping_add((token + AHEAD) * stride), head_size);
        let place = token / columns * columns * head_size + token % columns;
        for value in 0..head_size {
            *to.get_unchecked_mut(place + value * columns) = *from.add(token * stride + value);
        }
    }
    for token in length..length.next_multiple_of(columns) {
        let place = token / columns * columns * head_size + token % columns;
        for value in 0..head_size {
            *to.get_unchecked_mut(place + value * columns) = 0.0;
        }
    }
}

/// Values as panels of two vectors of a head's dimensions; what is past the last is zeros.
#[inline(always)]
unsafe fn pack_values<L: Lanes>(from: *const f32, stride: usize, length: usize, head_size: usize, to: &mut [f32]) {
    let columns = 2 * L::WIDTH;
    for panel in 0..head_size.div_ceil(columns) {
        let kept = columns.min(head_size - panel * columns);
        for token in 0..length {
            bring_nearer::<L>(from.wrapping_add((token + AHEAD) * stride + panel * columns), kept);
            let own = to.as_mut_ptr().add((panel * length + token) * columns);
            copy_panel::<L>(from.add(token * stride + panel * columns), kept, own);
            std::ptr::write_bytes(own.add(kept), 0, columns - kept);
        }
    }
}

#[inline(always)]
unsafe fn bring_nearer<L: Lanes>(values: *const f32, count: usize) {
    for at in (0..count).step_by(LINE_BYTES / size_of::<f32>()) {
        L::prefetch(values.wrapping_add(at).cast());
    }
}

/// Copies the first values of a panel's row: as vectors if there are as many.
#[inline(always)]
unsafe fn copy_panel<L: Lanes>(from: *const f32, count: usize, to: *mut f32) {
    if count == 2 * L::WIDTH {
        L::store(to, L::load(from));
        L::store(to.add(L::WIDTH), L::load(from.add(L::WIDTH)));
    } else {
        std::ptr::copy_nonoverlapping(from, to, count);
    }
}

#[inline(always)]
unsafe fn add<L: Lanes>(to: &mut [f32], values: &[f32]) {
    let whole = values.len() - values.len() % L::WIDTH;
    for at in (0..whole).step_by(L::WIDTH) {
        let sum = L::add(L::load(to.as_ptr().add(at)), L::load(values.as_ptr().add(at)));
        L::store(to.as_mut_ptr().add(at), sum);
    }
    for at in whole..values.len() {
        to[at] += values[at];
    }
}

/// `exp(xᵢ − largest x)` of the first `length` values, in their place; answers their sum. The rest, up to a whole vector,
/// may hold anything and holds nothing of use afterwards.
#[inline(always)]
unsafe fn softmax_numerators<L: Lanes>(row: &mut [f32], length: usize) -> f32 {
    row[length..].fill(f32::NEG_INFINITY);
    let end = length.next_multiple_of(L::WIDTH);
    let row = row.as_mut_ptr();
    let mut largest = L::load(row);
    for at in (L::WIDTH..end).step_by(L::WIDTH) {
        largest = L::max(largest, L::load(row.add(at)));
    }
    let largest = L::splat(L::largest(largest));
    let mut sum = L::splat(0.0);
    for at in (0..end).step_by(L::WIDTH) {
        let power = exp::<L>(L::sub(L::load(row.add(at)), largest));
        sum = L::add(sum, power);
        L::store(row.add(at), power);
    }
    // What stands past the end counts e^−87 each, which no sum of at least 1 can tell from nothing.
    L::sum(sum)
}
