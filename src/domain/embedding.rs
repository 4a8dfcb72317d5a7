//! The one record every answer is derived from: a unit vector in f16, and the length it had.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// A text's vector: scaled to length one and rounded to f16, with the Euclidean norm it had before.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The unit vector, `dims` values.
    pub unit: Box<[f16]>,
    /// The model's own length of it.
    pub norm: f32,
}

/// Why a model's output cannot be an embedding. Such a vector is never stored and never served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableVector {
    /// A value is NaN or infinite.
    #[error("the model's vector has a value that is not finite, at index {index}")]
    NotFinite {
        /// Where the first such value stands.
        index: usize,
    },
    /// All values are zero, or so small or large that the vector has no direction in f32.
    #[error("the model's vector has no direction: all its values are zero, or too small or large to tell")]
    NoDirection,
}

impl Embedding {
    /// Scales a model's output to length one and rounds it to f16.
    ///
    /// # Errors
    /// When a value is not finite, or all are zero.
    pub fn from_raw(raw: &[f32]) -> Result<Self, UnusableVector> {
        let (scaled, norm) = scaled_to_one(raw)?;
        let mut unit = vec![f16::ZERO; raw.len()].into_boxed_slice();
        unit.convert_from_f32_slice(&scaled);
        Ok(Self { unit, norm })
    }
}

/// A vector scaled to length one, and the length it had.
///
/// # Errors
/// When a value is not finite, or all are zero.
pub fn scaled_to_one(raw: &[f32]) -> Result<(Vec<f32>, f32), UnusableVector> {
    if let Some(index) = raw.iter().position(|value| !value.is_finite()) {
        return Err(UnusableVector::NotFinite { index });
    }
    let norm = raw.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    let inverse = (1.0 / norm) as f32;
    if !((norm as f32).is_normal() && inverse.is_normal()) {
        return Err(UnusableVector::NoDirection);
    }
    Ok((raw.iter().map(|value| value * inverse).collect(), norm as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_keeps_its_direction_and_its_length() {
        let embedding = Embedding::from_raw(&[3.0, 0.0, -4.0]).unwrap();
        assert_eq!(embedding.norm, 5.0);
        let values: Vec<f32> = embedding.unit.iter().map(|value| value.to_f32()).collect();
        assert!((values[0] - 0.6).abs() < 1e-3 && values[1] == 0.0 && (values[2] + 0.8).abs() < 1e-3);
    }

    #[test]
    fn a_vector_without_direction_is_refused() {
        assert_eq!(Embedding::from_raw(&[0.0, f32::NAN]), Err(UnusableVector::NotFinite { index: 1 }));
        assert_eq!(Embedding::from_raw(&[f32::INFINITY]), Err(UnusableVector::NotFinite { index: 0 }));
        assert_eq!(Embedding::from_raw(&[0.0, 0.0]), Err(UnusableVector::NoDirection));
        assert_eq!(Embedding::from_raw(&[]), Err(UnusableVector::NoDirection));
        assert_eq!(Embedding::from_raw(&[1e-42]), Err(UnusableVector::NoDirection));
    }
}
