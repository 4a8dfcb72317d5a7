//! What is counted.

use serde::Serialize;

/// What became of the texts of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// Texts that were neither in the cache nor another spelling of what was.
    pub(crate) asked: usize,
    /// Of them, those with a base so near that its vector is within the floor: what the best judge could reuse.
    pub(crate) possible: usize,
    /// Answered by another text's vector.
    pub(crate) reused: usize,
    /// Of these, those whose true vector is farther than the floor.
    pub(crate) violations: usize,
}

impl Outcome {
    /// Counts one text. `reused` is the true cosine to the vector it was given, if it was given one.
    pub(crate) fn count(&mut self, floor: f32, best: f32, reused: Option<f32>) {
        self.asked += 1;
        self.possible += usize::from(best >= floor);
        self.reused += usize::from(reused.is_some());
        self.violations += usize::from(reused.is_some_and(|cosine| cosine < floor));
    }
}

/// The middle one, or the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    lower.midpoint(upper)
}
