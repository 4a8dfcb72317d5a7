//! The rows on a GPU: a copy in f16 that proposes candidates, and the processor's index behind it for all else.
//!
//! ```text
//! set, clear ─► staging.rs     rows on their way, and which places have one
//! search ─► mirror.rs          what to ask, who may be in the answer, widening, giving up
//!           trial.rs           made-up rows, before anything is believed
//!           arithmetic.rs      how far a device's score can be from the similarity
//!           tensors.rs         candle's tensors: Metal, and every other device of candle's
//!           cuda.rs, kernels/  kernels for NVIDIA's
//! ```
//!
//! A device returns for each query the rows of the highest scores. Its arithmetic is its own, so a score is a proposal: within
//! a proven bound of [`super::similarity`], and the bound decides whether a row that was not returned could be in the answer.
//! If one could, more are asked for. Hits come from the same rows by the same routine as on the processor.
//!
//! ```text
//! returned:      score ≥ least            ┐ hits: the best k by `similarity`, which is computed from the store's rows
//! not returned:  score ≤ least            ┘ whole, if the k-th hit is more similar than least + bound
//! ```
//!
//! The matrix is made of slices of a fixed size: it grows by a slice, and what is there is neither copied nor moved. A row
//! that goes away loses its bit in a bitmap; filters are bitmaps too, made on the processor.
//!
//! Promises: what a device answers is what the processor would answer, to the bit. A device's fault costs an answer time, not
//! its truth: the processor's index computes it, the fault is counted, and after two in a row the device is given up.
//!
//! Never: keeps the only copy of anything.

mod arithmetic;
#[cfg(feature = "cuda")]
mod cuda;
mod mirror;
mod open;
mod staging;
mod tensors;
mod trial;

pub use open::{DeviceChoice, DeviceError};

use arithmetic::Arithmetic;
use half::f16;

/// Rows that one word of a bitmap stands for.
const WORD_ROWS: usize = u32::BITS as usize;
/// What a slice of the matrix takes at most. Large enough that growing is rare, small enough that little stays unused.
const SLICE_BYTES_MAX: usize = 64 << 20;

/// What a device says when it cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the search's device failed: {0}")]
struct Fault(String);

/// A row and how near the device takes it to be.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scored {
    place: u32,
    score: f32,
}

/// What a device is asked.
#[derive(Clone, Copy)]
struct Batch<'a> {
    /// Queries one after another, each as long as a row, in numbers that the device's [`Arithmetic`] holds.
    vectors: &'a [f32],
    /// For each query a score above which rows are passed over.
    ceilings: &'a [f32],
    /// How many rows a query gets, if there are as many: 1 to [`Accelerator::keep_max`].
    keep: usize,
    /// A bit for each place that may be proposed, as many as there is room for; without it those that were last allowed.
    only: Option<&'a [u32]>,
}

/// A device that holds rows and finds those of the highest scores. It is asked by one thread at a time. After a fault of `grow`,
/// `write` or `allow` what it holds is unknown, and it is not asked again.
trait Accelerator: Send {
    fn arithmetic(&self) -> Arithmetic;

    /// How many rows a query can get.
    fn keep_max(&self) -> usize;

    /// Places that there is room for.
    fn capacity(&self) -> usize;

    /// Makes room for at least so many places. What there is stays where it is; new places hold zeros and are not allowed.
    fn grow(&mut self, places: usize) -> Result<(), Fault>;

    /// Puts rows into places that there is room for, no place twice.
    fn write(&mut self, places: &[u32], rows: &[f16]) -> Result<(), Fault>;

    /// Which places may be proposed: a bit each, from the first of a word on.
    fn allow(&mut self, first_word: usize, words: &[u32]) -> Result<(), Fault>;

    /// For each query the allowed rows of the highest scores, in any order. A row that is left out has no higher score than any
    /// that is not, or one above the ceiling. Fewer than `keep` are all.
    fn nearest(&mut self, batch: &Batch<'_>) -> Result<Vec<Vec<Scored>>, Fault>;

    /// Bytes of its memory that are taken.
    fn memory_bytes(&self) -> usize;
}

/// And how many rows.
const SLICE_ROWS_MAX: usize = 1 << 17;

/// Rows of a slice: a power of two, so that a place's slice is in its upper bits.
fn slice_rows(row_bytes: usize) -> usize {
    let fitting = (SLICE_BYTES_MAX / row_bytes).clamp(1024, SLICE_ROWS_MAX);
    1 << fitting.ilog2()
}

#[cfg(test)]
mod tests;
