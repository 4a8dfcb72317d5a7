//! What reused vectors do to a search over them: the share of the ten nearest documents that are still found.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

const K: usize = 10;

/// The places of the ten nearest documents, for each query; the lower place first where two are as near.
fn nearest(queries: &[Vec<f32>], documents: &[Vec<f32>]) -> Vec<Vec<usize>> {
    let of_query = |query: &Vec<f32>| {
        let mut scored: Vec<(f32, usize)> = documents.iter().map(|row| dot(query, row)).zip(0..).collect();
        let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if scored.len() > K {
            scored.select_nth_unstable_by(K, order);
            scored.truncate(K);
        }
        scored.into_iter().map(|(_, place)| place).collect()
    };
    queries.par_iter().map(of_query).collect()
}

/// By sixteen sums side by side, so that it is computed by vector instructions.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Vectors as f32.
pub(crate) fn wide<'v>(units: impl Iterator<Item = &'v [f16]>) -> Vec<Vec<f32>> {
    units.map(HalfFloatSliceExt::to_f32_vec).collect()
}

/// Each value rounded to one of 255 steps of its vector's largest: what storing 8 bits a value costs.
pub(crate) fn quantised(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let rounded = |vector: &Vec<f32>| {
        let step = vector.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs())) / 127.0;
        vector.iter().map(|value| (value / step).round() * step).collect()
    };
    vectors.iter().map(rounded).collect()
}

/// What was found among the true vectors.
pub(crate) struct Truth {
    queries: Vec<Vec<f32>>,
    found: Vec<Vec<usize>>,
}

impl Truth {
    /// Searches the true vectors.
    pub(crate) fn new(queries: Vec<Vec<f32>>, documents: &[Vec<f32>]) -> Self {
        let found = nearest(&queries, documents);
        Self { queries, found }
    }

    /// The share of it that is found among other vectors of the same documents.
    pub(crate) fn recall(&self, documents: &[Vec<f32>]) -> f64 {
        let found = nearest(&self.queries, documents);
        let right: usize = self
            .found
            .iter()
            .zip(&found)
            .map(|(truth, found)| truth.iter().filter(|at| found.contains(at)).count())
            .sum();
        right as f64 / self.found.iter().map(Vec::len).sum::<usize>() as f64
    }
}
