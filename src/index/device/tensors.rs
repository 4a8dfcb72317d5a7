//! Rows in candle's tensors, on any device that candle has: Metal, and the processor in tests.
//!
//! candle sorts no long rows and has no top-k. What it has is enough: scores of a part of the matrix are cut into runs, the
//! device finds each run's largest, and only runs whose largest reaches what a query has so far are read.
//!
//! ```text
//! queries × part ─► scores ─► largest of each run of 64 ─► here: which runs ─► their scores ─► here: the best `keep`
//! ```

use candle_core::{DType, Device, Tensor};
use half::f16;

use super::arithmetic::Arithmetic;
use super::{Accelerator, Batch, Fault, Scored, WORD_ROWS, slice_rows};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Scores that are looked at as one.
const RUN: usize = 64;
/// Scores that there are at once: 64 MiB.
const SCORES_MAX: usize = 16 << 20;
/// More than any query with the most hits wants.
const KEEP_MAX: usize = 4096;

/// A matrix in tensors.
pub(super) struct Tensors {
    device: Device,
    dims: usize,
    slice_rows: usize,
    scores_max: usize,
    slices: Vec<Slice>,
    /// The bitmap of the slices.
    allowed: Vec<u32>,
}

struct Slice {
    /// Rows × dims, f16.
    rows: Tensor,
    /// 1 × rows: zero for a row that may be proposed, else minus infinity.
    penalties: Tensor,
}

impl From<candle_core::Error> for Fault {
    fn from(error: candle_core::Error) -> Self {
        Self(error.to_string())
    }
}

impl Tensors {
    pub(super) fn new(device: Device, dims: usize) -> Self {
        let slice_rows = slice_rows(dims * size_of::<f16>());
        Self { device, dims, slice_rows, scores_max: SCORES_MAX, slices: Vec::new(), allowed: Vec::new() }
    }

    /// As it is, but with so small slices and parts, of multiples of a run, that few rows are enough for many of them.
    #[cfg(test)]
    pub(super) fn with_small_parts(self, slice_rows: usize, scores_max: usize) -> Self {
        Self { slice_rows, scores_max, ..self }
    }

    fn penalties(&self, words: &[u32]) -> Result<Tensor, Fault> {
        let of_bit = |word: u32, bit: usize| if word >> bit & 1 == 1 { 0.0 } else { f32::NEG_INFINITY };
        let penalties: Vec<f32> =
            words.iter().flat_map(|&word| (0..WORD_ROWS).map(move |bit| of_bit(word, bit))).collect();
        Ok(Tensor::from_vec(penalties, (1, words.len() * WORD_ROWS), &self.device)?)
    }

    /// The scores of a part of a slice, queries × rows; minus infinity where a row may not be proposed.
    fn scores(&self, queries: &Tensor, ceilings: Option<&Tensor>, part: &Part<'_>) -> Result<Tensor, Fault> {
        let rows = part.rows.narrow(0, part.first, part.count)?.to_dtype(DType::F32)?;
        let penalties = part.penalties.narrow(1, part.first, part.count)?;
        let scores = queries.matmul(&rows.t()?)?.broadcast_add(&penalties)?;
        let Some(ceilings) = ceilings else { return Ok(scores) };
        let nowhere = Tensor::full(f32::NEG_INFINITY, scores.shape(), &self.device)?;
        Ok(scores.broadcast_gt(ceilings)?.where_cond(&nowhere, &scores)?)
    }
}

/// Rows of a slice that are looked at together.
struct Part<'a> {
    rows: &'a Tensor,
    penalties: &'a Tensor,
    /// The place of the slice's first row.
    place: usize,
    first: usize,
    count: usize,
}

/// The best of one query so far.
struct Best {
    keep: usize,
    /// The least first.
    kept: BinaryHeap<Reverse<Ranked>>,
}

#[derive(Clone, Copy, PartialEq)]
struct Ranked(Scored);

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.score.total_cmp(&other.0.score).then(other.0.place.cmp(&self.0.place))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Best {
    /// What a score must exceed.
    fn floor(&self) -> f32 {
        let least = self.kept.peek().filter(|_| self.kept.len() == self.keep);
        least.map_or(f32::NEG_INFINITY, |Reverse(Ranked(least))| least.score)
    }

    fn offer(&mut self, scored: Scored) {
        // Not a number is no score.
        if scored.score > self.floor() {
            self.kept.push(Reverse(Ranked(scored)));
            if self.kept.len() > self.keep {
                self.kept.pop();
            }
        }
    }
}

impl Accelerator for Tensors {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Single
    }

    fn keep_max(&self) -> usize {
        KEEP_MAX
    }

    fn capacity(&self) -> usize {
        self.slices.len() * self.slice_rows
    }

    fn grow(&mut self, places: usize) -> Result<(), Fault> {
        while self.capacity() < places {
            let rows = Tensor::zeros((self.slice_rows, self.dims), DType::F16, &self.device)?;
            self.allowed.resize(self.allowed.len() + self.slice_rows / WORD_ROWS, 0);
            let penalties = self.penalties(&self.allowed[self.allowed.len() - self.slice_rows / WORD_ROWS..])?;
            self.slices.push(Slice { rows, penalties });
        }
        Ok(())
    }

    fn write(&mut self, places: &[u32], rows: &[f16]) -> Result<(), Fault> {
        // Neighbours travel together: the store gives places away in order.
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|&at| places[at]);
        let neighbours = |a: &usize, b: &usize| {
            let (a, b) = (places[*a] as usize, places[*b] as usize);
            a + 1 == b && a / self.slice_rows == b / self.slice_rows
        };
        for run in order.chunk_by(neighbours) {
            let values: Vec<f16> = run.iter().flat_map(|&at| &rows[at * self.dims..][..self.dims]).copied().collect();
            let place = places[run[0]] as usize;
            let moved = Tensor::from_vec(values, (run.len(), self.dims), &self.device)?;
            self.slices[place / self.slice_rows].rows.slice_set(&moved, 0, place % self.slice_rows)?;
        }
        Ok(())
    }

    fn allow(&mut self, first_word: usize, words: &[u32]) -> Result<(), Fault> {
        self.allowed[first_word..][..words.len()].copy_from_slice(words);
        let slice_words = self.slice_rows / WORD_ROWS;
        for slice in first_word / slice_words..(first_word + words.len()).div_ceil(slice_words) {
            self.slices[slice].penalties = self.penalties(&self.allowed[slice * slice_words..][..slice_words])?;
        }
        Ok(())
    }

    fn nearest(&mut self, batch: &Batch<'_>) -> Result<Vec<Vec<Scored>>, Fault> {
        let count = batch.ceilings.len();
        let queries = Tensor::from_slice(batch.vectors, (count, self.dims), &self.device)?;
        let ceilings = match batch.ceilings.iter().any(|ceiling| ceiling.is_finite()) {
            true => Some(Tensor::from_slice(batch.ceilings, (count, 1), &self.device)?),
            false => None,
        };
        let mut best: Vec<Best> =
            (0..count).map(|_| Best { keep: batch.keep, kept: BinaryHeap::with_capacity(batch.keep + 1) }).collect();
        let part_rows = (self.scores_max / count / RUN * RUN).clamp(RUN, self.slice_rows);
        let slice_words = self.slice_rows / WORD_ROWS;
        for (number, slice) in self.slices.iter().enumerate() {
            let words = &batch.only.unwrap_or(&self.allowed)[number * slice_words..][..slice_words];
            // From the first row that may be proposed to the last.
            let Some(first_word) = words.iter().position(|&word| word != 0) else { continue };
            let last_word = words.iter().rposition(|&word| word != 0).unwrap_or(first_word);
            let begin = first_word * WORD_ROWS / RUN * RUN;
            let end = ((last_word + 1) * WORD_ROWS).next_multiple_of(RUN);
            let only = batch.only.map(|_| self.penalties(words)).transpose()?;
            let penalties = only.as_ref().unwrap_or(&slice.penalties);
            for first in (begin..end).step_by(part_rows) {
                let rows = part_rows.min(end - first);
                let place = number * self.slice_rows;
                let part = Part { rows: &slice.rows, penalties, place, first, count: rows };
                let scores = self.scores(&queries, ceilings.as_ref(), &part)?;
                offer_all(&scores, &part, &mut best)?;
            }
        }
        Ok(best.into_iter().map(|best| best.kept.into_iter().map(|Reverse(Ranked(scored))| scored).collect()).collect())
    }

    fn memory_bytes(&self) -> usize {
        self.capacity() * (self.dims * size_of::<f16>() + size_of::<f32>())
    }
}

/// Reads the runs that may hold one of a query's best. Of a query's runs no more than `keep` can: those with the largest scores.
fn offer_all(scores: &Tensor, part: &Part<'_>, best: &mut [Best]) -> Result<(), Fault> {
    let runs = part.count / RUN;
    let in_runs = scores.reshape((best.len() * runs, RUN))?;
    let largest: Vec<f32> = in_runs.max(1)?.to_vec1()?;
    let mut read: Vec<u32> = Vec::new();
    for (query, (largest, best)) in largest.chunks(runs).zip(&*best).enumerate() {
        let mut reaching: Vec<usize> = (0..runs).filter(|&run| largest[run] > best.floor()).collect();
        if reaching.len() > best.keep {
            reaching.select_nth_unstable_by(best.keep - 1, |&a, &b| largest[b].total_cmp(&largest[a]));
            reaching.truncate(best.keep);
        }
        read.extend(reaching.iter().map(|run| (query * runs + run) as u32));
    }
    if read.is_empty() {
        return Ok(());
    }
    let indices = Tensor::from_slice(&read, read.len(), in_runs.device())?;
    let values: Vec<f32> = in_runs.index_select(&indices, 0)?.flatten_all()?.to_vec1()?;
    for (&run, values) in read.iter().zip(values.chunks(RUN)) {
        let (query, run) = (run as usize / runs, run as usize % runs);
        for (at, &score) in values.iter().enumerate() {
            let place = (part.place + part.first + run * RUN + at) as u32;
            best[query].offer(Scored { place, score });
        }
    }
    Ok(())
}
