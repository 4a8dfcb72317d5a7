//! What each token alone means to the model: a vector a token, distilled once.

use half::f16;
use nalgebra::{DMatrix, DMatrixView};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// The most values a token's vector keeps, and of a vocabulary that is large.
pub const TABLE_DIMS_MAX: usize = 256;
const LARGE_DIMS_MAX: usize = 128;
const LARGE_TOKENS: usize = 100_000;

/// Tokens that covariances are summed over at a time.
const BLOCK: usize = 4096;

const NAME: &str = "tokens";

/// A vector for each token of a vocabulary, from what the model makes of the token alone: centred, and turned so that the
/// first values say most (a principal component analysis).
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    dims: usize,
    values: Vec<f32>,
}

/// Why a saved table cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("this is no table of tokens: {0}")]
pub struct TableError(String);

impl Table {
    /// Distils a table from the model's vectors, `dims` values for each token in the order of ids.
    ///
    /// # Panics
    /// When the vectors are not of `dims` values each, or there are none.
    #[must_use]
    pub fn distil(vectors: &[f32], dims: usize) -> Self {
        assert!(dims > 0 && !vectors.is_empty() && vectors.len().is_multiple_of(dims), "whole vectors");
        let tokens = vectors.len() / dims;
        // Column-major: a token is a column.
        let vectors = DMatrixView::from_slice(vectors, dims, tokens);
        let mean = vectors.column_mean();
        let mut centred = vectors.into_owned();
        centred.column_iter_mut().for_each(|mut column| column -= &mean);
        let kept = dims.min(if tokens < LARGE_TOKENS { TABLE_DIMS_MAX } else { LARGE_DIMS_MAX });
        let mut covariance = DMatrix::<f32>::zeros(dims, dims);
        for start in (0..tokens).step_by(BLOCK) {
            let block = centred.columns(start, BLOCK.min(tokens - start));
            covariance += block * block.transpose();
        }
        let basis = leading(covariance, kept);
        let turned = basis.transpose() * centred;
        // Small enough for f16, as it is kept in, whatever the model's scale.
        let largest = turned.amax().max(f32::MIN_POSITIVE);
        let values = turned.iter().map(|value| f16::from_f32(value / largest).to_f32()).collect();
        Self { dims: kept, values }
    }

    /// How many values a token's vector has.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// How many tokens there are.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.values.len() / self.dims
    }

    /// A token's vector; empty for an id that the vocabulary does not have.
    #[must_use]
    pub fn row(&self, id: u32) -> &[f32] {
        let row = self.values.get(id as usize * self.dims..).and_then(|rest| rest.get(..self.dims));
        row.unwrap_or_default()
    }

    /// Adds a token's vector, times a weight, to a sum.
    pub(super) fn add(&self, id: u32, weight: f32, sum: &mut [f32]) {
        for (sum, value) in sum.iter_mut().zip(self.row(id)) {
            *sum += weight * value;
        }
    }

    /// The table as a safetensors file.
    ///
    /// # Panics
    /// Never: a table is a tensor.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let tensor =
            TensorView::new(Dtype::F16, vec![self.tokens(), self.dims], &bytes).expect("shape and bytes agree");
        safetensors::serialize([(NAME, tensor)], None).expect("one tensor can be written")
    }

    /// The table that a file holds.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TableError> {
        let no = |problem: &str| TableError(problem.to_owned());
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| TableError(error.to_string()))?;
        let tensor = tensors.tensor(NAME).map_err(|error| TableError(error.to_string()))?;
        let &[tokens, dims] = tensor.shape() else { return Err(no("its tensor is no matrix")) };
        if tensor.dtype() != Dtype::F16 || tokens == 0 || !(1..=TABLE_DIMS_MAX).contains(&dims) {
            return Err(no("its tensor has another type or shape"));
        }
        let values: Vec<f32> =
            tensor.data().as_chunks::<2>().0.iter().map(|&value| f16::from_le_bytes(value).to_f32()).collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(no("a value is not finite"));
        }
        Ok(Self { dims, values })
    }
}

/// The eigenvectors of a symmetric matrix with the largest eigenvalues, as columns, the largest first.
pub(super) fn leading(symmetric: DMatrix<f32>, count: usize) -> DMatrix<f32> {
    let dims = symmetric.nrows();
    let eigen = symmetric.symmetric_eigen();
    let mut order: Vec<usize> = (0..dims).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let columns: Vec<_> = order[..count.min(dims)].iter().map(|&index| eigen.eigenvectors.column(index)).collect();
    DMatrix::from_columns(&columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens on a line through five dimensions, and a little beside it.
    fn line() -> Vec<f32> {
        (0..50).flat_map(|n| [3.0 + n as f32, 2.0 * n as f32, 0.5, if n % 2 == 0 { 0.1 } else { -0.1 }, 7.0]).collect()
    }

    #[test]
    fn the_first_value_says_most() {
        let table = Table::distil(&line(), 5);
        assert_eq!((table.dims(), table.tokens()), (5, 50));
        let spread = |at: usize| {
            let values: Vec<f32> = (0..50).map(|id| table.row(id)[at]).collect();
            values.iter().copied().fold(f32::MIN, f32::max) - values.iter().copied().fold(f32::MAX, f32::min)
        };
        assert!(spread(0) > 1.0 && spread(1) < 0.01 && spread(4) < 1e-3, "{} {} {}", spread(0), spread(1), spread(4));
        assert!(table.row(50).is_empty() && table.row(u32::MAX).is_empty());
    }

    #[test]
    fn a_table_is_read_as_it_was_written_and_nothing_else_is() {
        let table = Table::distil(&line(), 5);
        let bytes = table.to_bytes();
        assert_eq!(Table::from_bytes(&bytes).unwrap(), table);
        for cut in [0, 1, 8, 40, bytes.len() - 1] {
            assert!(Table::from_bytes(&bytes[..cut]).is_err(), "cut to {cut}");
        }
        let mut not_finite = bytes;
        let end = not_finite.len();
        not_finite[end - 2..].copy_from_slice(&f16::NAN.to_le_bytes());
        assert!(Table::from_bytes(&not_finite).is_err());
    }
}
