//! A cheap vector for a text: the mean of its tokens' vectors, mapped to where the model puts such texts.

use half::f16;
use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

use super::lexicon::Lexicon;
use super::table::{Table, leading};

/// The most values of a cheap vector.
pub(super) const CHEAP_DIMS_MAX: usize = 128;

/// How strongly the map is kept small, against a mean square of one over the texts' own spread.
const RIDGE: f64 = 1e-3;

/// Texts that are summed over at a time.
const BLOCK: usize = 1024;

/// From a text's mean token vector to its cheap vector: linear, fitted by ridge regression on texts whose vectors are known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// Values of a cheap vector.
    dims: usize,
    /// Values of a table's row, and one that is always 1.
    inputs: usize,
    /// Column after column: `inputs` weights for each of `dims` values.
    weights: Vec<f32>,
}

impl Map {
    /// Fits a map that makes of each text's ids what is nearest to its vector, of length one. `None` if there are too few
    /// texts to fit anything.
    #[must_use]
    pub fn fit<'a>(
        table: &Table,
        lexicon: &Lexicon,
        texts: impl ExactSizeIterator<Item = (&'a [u32], &'a [f16])>,
    ) -> Option<Self> {
        let inputs = table.dims() + 1;
        let count = texts.len();
        let mut texts = texts.peekable();
        let outputs = texts.peek()?.1.len();
        if count < 2 * inputs {
            return None;
        }
        let (mut squares, mut products) = (DMatrix::<f32>::zeros(inputs, inputs), DMatrix::zeros(inputs, outputs));
        let mut spread = DMatrix::<f32>::zeros(outputs, outputs);
        while texts.peek().is_some() {
            let (mut x, mut y) = (Vec::with_capacity(BLOCK * inputs), Vec::with_capacity(BLOCK * outputs));
            for (ids, unit) in texts.by_ref().take(BLOCK) {
                x.extend(mean(table, lexicon, ids));
                x.push(1.0);
                y.extend(unit.iter().map(|value| value.to_f32()));
            }
            let x = DMatrix::from_vec(inputs, x.len() / inputs, x);
            let y = DMatrix::from_vec(outputs, y.len() / outputs, y);
            squares += &x * x.transpose();
            products += &x * y.transpose();
            spread += &y * y.transpose();
        }
        let ridge = RIDGE * f64::from(squares.trace()) / inputs as f64;
        for diagonal in 0..inputs {
            squares[(diagonal, diagonal)] += ridge as f32;
        }
        // Only the directions that the texts' own vectors use most.
        let basis = leading(spread, CHEAP_DIMS_MAX);
        let weights = squares.cholesky()?.solve(&(products * &basis));
        let weights: Vec<f32> = weights.iter().copied().collect();
        weights.iter().all(|weight| weight.is_finite()).then_some(Self { dims: basis.ncols(), inputs, weights })
    }

    /// How many values a cheap vector has.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Whether this can be applied to a table's rows.
    #[must_use]
    pub fn fits(&self, table: &Table) -> bool {
        self.inputs == table.dims() + 1
            && (1..=CHEAP_DIMS_MAX).contains(&self.dims)
            && self.weights.len() == self.inputs * self.dims
            && self.weights.iter().all(|weight| weight.is_finite())
    }

    /// The cheap vector of a text whose mean token vector is given, of length one; `None` if it has no direction.
    #[must_use]
    pub fn apply(&self, mean: &[f32]) -> Option<Vec<f32>> {
        let mut input = DVector::from_element(self.inputs, 1.0);
        input.as_mut_slice()[..self.inputs - 1].copy_from_slice(mean);
        let mut vector: Vec<f32> = self
            .weights
            .chunks_exact(self.inputs)
            .map(|weights| weights.iter().zip(input.as_slice()).map(|(a, b)| a * b).sum())
            .collect();
        scale_to_one(&mut vector).then_some(vector)
    }
}

/// The mean of a text's token vectors, each weighted by how rare its token is, scaled to length one; zeros for a text whose
/// mean has no direction.
#[must_use]
pub(super) fn mean(table: &Table, lexicon: &Lexicon, ids: &[u32]) -> Vec<f32> {
    let mut sum = vec![0.0; table.dims()];
    for &id in ids {
        table.add(id, lexicon.idf(id), &mut sum);
    }
    if !scale_to_one(&mut sum) {
        sum.fill(0.0);
    }
    sum
}

/// Scales a vector to length one. `false` if it has no direction.
fn scale_to_one(vector: &mut [f32]) -> bool {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if !norm.is_normal() {
        return false;
    }
    vector.iter_mut().for_each(|value| *value /= norm);
    true
}
