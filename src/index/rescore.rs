//! From candidates to hits: the one routine that says how similar a row is, and who of the candidates are nearest.
//!
//! Whoever finds candidates, and with whatever arithmetic, hits come from here, so they have the same similarities and the
//! same order.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::query::{Hit, Query, Rows};
use super::selection::{Candidate, Candidates};
use crate::domain::Key;

/// Partial sums of a similarity: value `i` is added to sum `i % LANES`.
pub(super) const LANES: usize = 16;
/// Values that are widened at a time: a multiple of the lanes, so that each piece begins with the first of them.
const PIECE: usize = 128;
/// Rows that are asked for at a time, once the first `k` are known.
const READ_ROWS: usize = 32;

/// The dot product of a unit vector and a row: the same to the bit on every processor.
///
/// Each product is rounded, never fused with the addition; products are added in order to `LANES` sums, of which then
/// the upper half is added to the lower until one is left. So any vector instructions may compute it, and every order
/// but this one is another function.
///
/// # Panics
/// When the two are not equally long.
#[must_use]
pub fn similarity(query: &[f32], row: &[f16]) -> f32 {
    assert_eq!(query.len(), row.len(), "a query is as long as the index's rows");
    let mut sums = [0.0f32; LANES];
    let mut wide = [0.0f32; PIECE];
    for (query, row) in query.chunks(PIECE).zip(row.chunks(PIECE)) {
        let wide = &mut wide[..row.len()];
        row.convert_to_f32_slice(wide);
        let ((query, query_rest), (wide, wide_rest)) = (query.as_chunks::<LANES>(), wide.as_chunks::<LANES>());
        for (query, wide) in query.iter().zip(wide) {
            for lane in 0..LANES {
                sums[lane] += query[lane] * wide[lane];
            }
        }
        for (sum, (query, wide)) in sums.iter_mut().zip(query_rest.iter().zip(wide_rest)) {
            *sum += query * wide;
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    // Makes a negative zero a positive one: they are equally similar.
    sums[0] + 0.0
}

/// A hit in the order of answers: the greatest is the first.
struct Ranked(Hit);

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        rank(self.0.similarity, &self.0.key, other.0.similarity, &other.0.key).reverse()
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

/// The order of answers: the more similar first, of the equally similar the one with the smaller key.
fn rank(similarity: f32, key: &Key, other_similarity: f32, other_key: &Key) -> Ordering {
    other_similarity.total_cmp(&similarity).then_with(|| key.cmp(other_key))
}

/// The `k` nearest of the candidates that `rows` still has, nearest first; `None` if one that is no candidate could be
/// among them, because candidates are gone that had kept it out.
pub(super) fn settle(query: &Query<'_>, candidates: Candidates, rows: &dyn Rows) -> Option<Vec<Hit>> {
    let Candidates { mut found, dropped_below } = candidates;
    // A row that is being replaced is found in two places: the later one counts.
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(b.sequence.cmp(&a.sequence)));
    found.dedup_by_key(|candidate| candidate.key);
    found.sort_unstable_by(|a, b| b.upper.total_cmp(&a.upper));

    let mut nearest: BinaryHeap<Reverse<Ranked>> = BinaryHeap::with_capacity(query.k + 1);
    let mut rest = &found[..];
    while let Some(first) = rest.first() {
        let worst = nearest.peek().filter(|_| nearest.len() == query.k);
        if worst.is_some_and(|Reverse(Ranked(worst))| first.upper < worst.similarity) {
            break;
        }
        let (now, later) = rest.split_at(rest.len().min(if nearest.is_empty() { query.k } else { READ_ROWS }));
        for hit in rescore(query, now, rows).into_iter().filter(|hit| query.wants(hit)) {
            nearest.push(Reverse(Ranked(hit)));
            if nearest.len() > query.k {
                nearest.pop();
            }
        }
        rest = later;
    }
    let hits: Vec<Hit> = nearest.into_sorted_vec().into_iter().map(|Reverse(Ranked(hit))| hit).collect();
    let worst = if hits.len() == query.k { hits[query.k - 1].similarity } else { f32::NEG_INFINITY };
    (dropped_below <= worst.max(query.min_similarity.unwrap_or(f32::NEG_INFINITY))).then_some(hits)
}

/// The similarities of the candidates that are still there.
fn rescore(query: &Query<'_>, candidates: &[Candidate], rows: &dyn Rows) -> Vec<Hit> {
    let keys: Vec<Key> = candidates.iter().map(|candidate| candidate.key).collect();
    loop {
        let mut hits = Vec::with_capacity(keys.len());
        let whole = rows.read(&keys, &mut |index, sequence, row| {
            let Candidate { key, place, .. } = candidates[index];
            hits.push(Hit { key, place, sequence, similarity: similarity(query.vector, row) });
        });
        if whole {
            return hits;
        }
    }
}
