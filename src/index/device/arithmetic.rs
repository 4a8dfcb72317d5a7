//! How far a device's score can be from the similarity that it stands for.
//!
//! ```text
//! similarity − score  =  (similarity − q·r)  +  (q − q̂)·r  +  (q̂·r − score)
//!                        └ its own rounding ┘   └ measured ┘   └ the device's sum ┘
//! ```
//!
//! `q̂` is the query in the numbers that the device multiplies; rows are the same f16 on both sides. The first and the last part
//! are bounded for any order of the sum: with `n` products, each product and each sum rounded by at most `u` of what is
//! summed, they are at most `2nu ‖q‖ ‖r‖`, by Cauchy and Schwarz. `u` is half the distance between two f32 where numbers are rounded
//! to the nearest, and the whole where they are cut off, as tensor cores may do: their documentation promises "at least single
//! precision" and leaves the rounding open. Here it is the whole, and twice that for what sums of more than two numbers may
//! drop when they are aligned. So the bound needs of a device that it sums in f32, nothing else.

use half::f16;

use super::super::query::Query;

/// The distance from one to the next f32.
const F32_STEP: f64 = 1.0 / (1u64 << 23) as f64;
/// Operations beyond those that grow with the length: the sums of the lanes at the end, scaling, storing.
const OPERATIONS_MORE: f64 = 16.0;
/// More than what is lost when sums of squares in f64 and their roots are rounded.
const UPWARDS: f64 = 1.0 + 1e-6;

/// What a device multiplies; it sums in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arithmetic {
    /// Queries in f16, as tensor cores take them.
    #[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "what CUDA's kernels multiply"))]
    Half,
    /// Queries in f32.
    Single,
}

/// Queries as a device takes them.
pub(super) struct Rounded {
    /// One after another.
    pub(super) vectors: Vec<f32>,
    /// For each how far a score can be off, for rows of length one.
    errors: Vec<f64>,
    dims: usize,
}

impl Arithmetic {
    /// Rounds queries, which are all `dims` long.
    pub(super) fn round(self, queries: &[Query<'_>], dims: usize) -> Rounded {
        let mut vectors = Vec::with_capacity(queries.len() * dims);
        let mut errors = Vec::with_capacity(queries.len());
        for query in queries {
            let (mut squares, mut error_squares) = (0.0f64, 0.0f64);
            vectors.extend(query.vector.iter().map(|&value| {
                let rounded = match self {
                    Self::Half => f16::from_f32(value).to_f32(),
                    Self::Single => value,
                };
                let (value, error) = (f64::from(value), f64::from(value) - f64::from(rounded));
                squares += value * value;
                error_squares += error * error;
                rounded
            }));
            let (length, error) = (squares.sqrt(), error_squares.sqrt());
            let of_sums = (4.0 * dims as f64 + OPERATIONS_MORE) * F32_STEP * (length + error);
            let of_similarity = (dims as f64 / 16.0 + OPERATIONS_MORE) * F32_STEP * length;
            errors.push((error + of_sums + of_similarity) * UPWARDS);
        }
        Rounded { vectors, errors, dims }
    }
}

impl Rounded {
    /// At least the distance between score and similarity of a query and any row that is at most so long.
    pub(super) fn error(&self, query: usize, row_length_max: f64) -> f64 {
        // Products may be too small for an f32, each by less than the least of them.
        self.errors[query] * row_length_max * UPWARDS + self.dims as f64 * f64::from(f32::MIN_POSITIVE)
    }
}

/// The least f32 that is at least the number.
pub(super) fn at_least(number: f64) -> f32 {
    let near = number as f32;
    if f64::from(near) < number { near.next_up() } else { near }
}

/// At least the length of a row.
pub(super) fn length(row: &[f16]) -> f64 {
    row.iter().map(|value| value.to_f64() * value.to_f64()).sum::<f64>().sqrt() * UPWARDS
}
