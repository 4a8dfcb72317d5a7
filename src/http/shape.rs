//! The shapes a vector is asked for in, all derived from the stored unit vector and its norm.
//!
//! Every shape is rounded to f16 here, before any encoding, so that all formats decode to the same bits. When the
//! stored vectors are what was asked for, nothing is copied.

use std::borrow::Cow;

use half::f16;

use crate::cache::Answer;
use crate::domain::ModelCard;

use super::errors::Error;

/// What a request may say about the shape of its vectors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    /// Scale to length one; what the model's card says if `None`.
    pub(super) normalize: Option<bool>,
    /// Cut to this length; the model's own if `None`.
    pub(super) dimensions: Option<usize>,
}

/// Vectors ready to be encoded, row after row.
pub(super) struct Shaped<'a> {
    pub(super) dims: usize,
    pub(super) values: Cow<'a, [f16]>,
}

impl Shaped<'_> {
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &[f16]> {
        self.values.chunks_exact(self.dims.max(1))
    }
}

impl Shape {
    /// The length of the vectors asked for.
    ///
    /// # Errors
    /// When the model was not trained to be cut to it.
    pub(super) fn dims(self, card: &ModelCard) -> Result<usize, Error> {
        match self.dimensions {
            None => Ok(card.dims),
            Some(dims) if dims == card.dims || card.matryoshka_dims.contains(&dims) => Ok(dims),
            Some(found) => Err(Error::Dimensions { found, allowed: allowed_dims(card) }),
        }
    }

    /// Gives an answer's vectors the shape.
    ///
    /// # Errors
    /// As [`Shape::dims`].
    pub(super) fn apply<'a>(self, answer: &'a Answer, card: &ModelCard) -> Result<Shaped<'a>, Error> {
        let dims = self.dims(card)?;
        let normalize = self.normalize.unwrap_or(card.normalize);
        if normalize && dims == answer.dims {
            return Ok(Shaped { dims, values: Cow::Borrowed(&answer.units) });
        }
        let mut values = Vec::with_capacity(answer.items.len() * dims);
        for (unit, item) in answer.units.chunks_exact(answer.dims.max(1)).zip(&answer.items) {
            let prefix = &unit[..dims];
            let scale = if normalize { inverse_norm(prefix) } else { item.norm };
            values.extend(prefix.iter().map(|value| f16::from_f32(value.to_f32() * scale)));
        }
        Ok(Shaped { dims, values: Cow::Owned(values) })
    }
}

/// The lengths a request may ask for, longest first.
pub(super) fn allowed_dims(card: &ModelCard) -> Vec<usize> {
    let mut allowed = card.matryoshka_dims.clone();
    allowed.push(card.dims);
    allowed.sort_unstable_by(|a, b| b.cmp(a));
    allowed.dedup();
    allowed
}

/// One over the Euclidean norm; 0 for a vector of zeros, which stays what it is.
fn inverse_norm(values: &[f16]) -> f32 {
    let square: f64 = values.iter().map(|value| value.to_f64() * value.to_f64()).sum();
    if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 }
}
