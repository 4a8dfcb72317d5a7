//! Vectors rounded to integers, and how far a product of integers can be from the similarity it stands for.
//!
//! A row `r` of f16 is kept as `scale × codes`, codes of eight bits, a query `q` as the same with sixteen. Then
//!
//! ```text
//! q·r  =  scale_q scale_r (codes_q · codes_r)  +  q · (r − decoded_r)  +  (q − decoded_q) · decoded_r
//!         └ an exact sum of integers ┘            └ ≤ ‖q‖ error_r ┘       └ ≤ error_q ‖decoded_r‖ ┘
//! ```
//!
//! by Cauchy and Schwarz. The errors are measured when a vector is rounded, not estimated, so the bound holds whatever the
//! vector. To them comes what f32 adds: the rounding of the similarity itself, and of the bound.
//! The bound is over the similarity as [`super::similarity`] computes it, to the bit.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::kernel::CODES_ALIGNED;
use super::query::length;
use super::rescore::LANES;

/// The largest magnitude of a row's code.
const ROW_CODE_MAX: f32 = 127.0;
/// Sums that a row's squares are added to in turn, so that a processor need not wait for one to add the next.
const SUMS: usize = 8;
/// 1.5 × 2²³: added to an f32 of less than 2²², it leaves no room for fractions, and the integer in the lowest bits. Rounding
/// as such is a call where the processor may be too old to have an instruction for it.
const WHOLE: f32 = 12_582_912.0;
/// Half the distance from one to the next f32: the largest relative error of one rounding.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;
/// More than what is lost when an f64 sum of squares and its root become an f32.
const UPWARDS: f64 = 1.0 + 1e-6;

/// How many codes a vector has in memory.
pub(super) fn stride(dims: usize) -> usize {
    dims.next_multiple_of(CODES_ALIGNED)
}

/// What its codes say of a row, and what they don't.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowScale {
    /// The value of a code of one.
    pub(super) scale: f32,
    /// At least the distance of the decoded row from the row.
    pub(super) error: f32,
    /// At least the length of the row, and of the decoded row.
    pub(super) length: f32,
}

/// Rounds a row to as many codes as it has values; `None` for a row without a direction: zero, or not finite.
pub(super) fn round_row(row: &[f16], codes: &mut [i8]) -> Option<RowScale> {
    // The largest magnitude's bits are the largest bits, and the infinite's are above all finite ones'.
    let largest = row.iter().fold(0, |largest, value| i16::max(largest, (value.to_bits() & 0x7fff) as i16)) as u16;
    if largest == 0 || largest >= f16::INFINITY.to_bits() {
        return None;
    }
    let scale = f16::from_bits(largest).to_f32() / ROW_CODE_MAX;
    let inverse = 1.0 / scale;
    let mut values = vec![0.0f32; row.len()];
    row.convert_to_f32_slice(&mut values);
    let (mut squares, mut error_squares) = ([0.0f64; SUMS], [0.0f64; SUMS]);
    for (codes, values) in codes.chunks_mut(SUMS).zip(values.chunks(SUMS)) {
        for (((code, &value), square), error_square) in
            codes.iter_mut().zip(values).zip(&mut squares).zip(&mut error_squares)
        {
            // Values are f16, so their product with the inverse is at most 127 and a little, whatever was rounded.
            let shifted = (value * inverse).clamp(-ROW_CODE_MAX, ROW_CODE_MAX) + WHOLE;
            *code = shifted.to_bits() as i8;
            let error = f64::from(value) - f64::from(shifted - WHOLE) * f64::from(scale);
            *square += f64::from(value) * f64::from(value);
            *error_square += error * error;
        }
    }
    let (squares, error_squares) = (squares.iter().sum::<f64>(), error_squares.iter().sum::<f64>());
    let error = (error_squares.sqrt() * UPWARDS) as f32;
    let length = ((squares.sqrt() + error_squares.sqrt()) * UPWARDS) as f32;
    Some(RowScale { scale, error: error.next_up(), length: length.next_up() })
}

/// The same of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct QueryScale {
    scale: f32,
    /// At least the length of the query.
    length: f32,
    /// The part of a bound that is the same for all rows of length one.
    slack: f32,
}

/// Rounds a query, of length one, to as many codes as it has values, of sixteen bits or as many as leave sums of products
/// room in an i32.
pub(super) fn round_query(query: &[f32], codes: &mut [i16]) -> QueryScale {
    let length = length(query);
    let magnitudes = query.iter().map(|&value| f64::from(value).abs());
    let (largest, total) =
        magnitudes.fold((0.0f64, 0.0), |(largest, total), value| (largest.max(value), total + value));
    // Each code is at most half more than its value's share; sums stay below 127 times the codes' magnitudes.
    let total_max = f64::from(i32::MAX / ROW_CODE_MAX as i32) - query.len() as f64;
    let scale = (largest / f64::from(i16::MAX)).max(total / total_max) as f32;
    let mut error_squares = 0.0f64;
    for (code, &value) in codes.iter_mut().zip(query) {
        let rounded = (f64::from(value) / f64::from(scale)).round_ties_even() as i16;
        *code = rounded;
        let error = f64::from(value) - f64::from(rounded) * f64::from(scale);
        error_squares += error * error;
    }
    let error = error_squares.sqrt();
    // Roundings from a product to the similarity: its own, one for each further product of its lane, the lanes' sum.
    // Then those of the bound: of the integer, of two products, of the sum; twice that, to have done with it.
    let roundings = query.len().div_ceil(LANES) + LANES.ilog2() as usize + 2 + 8;
    let slack = error + roundings as f64 * ROUNDING * (length + error);
    QueryScale {
        scale,
        length: ((length * UPWARDS) as f32).next_up(),
        slack: ((slack * UPWARDS) as f32).next_up() + f32::MIN_POSITIVE,
    }
}

/// What bounds take from a query and all rows of at most one length.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    scale: f32,
    length: f32,
    slack: f32,
}

impl Bounds {
    pub(super) fn new(query: &QueryScale, row_length_max: f32) -> Self {
        let slack = f64::from(query.slack) * f64::from(row_length_max) * UPWARDS;
        Self { scale: query.scale, length: query.length, slack: (slack as f32).next_up() }
    }

    /// The similarity is at least the first and at most the second.
    #[inline(always)]
    pub(super) fn of(self, product: i32, row_scale: f32, row_error: f32) -> (f32, f32) {
        let middle = product as f32 * (row_scale * self.scale);
        let margin = row_error * self.length + self.slack;
        (middle - margin, middle + margin)
    }
}
