//! One vector from the vectors of a text's tokens.

use crate::domain::Pooling;

/// Pools rows of `size` values, one a token, that stand one after the other. The order of additions is that of the tokens.
pub(super) fn pool(rows: &[f32], size: usize, pooling: Pooling) -> Vec<f32> {
    let mut tokens = rows.chunks_exact(size);
    let first = || rows[..size].to_vec();
    match pooling {
        Pooling::Cls => first(),
        Pooling::Upstream => unreachable!("a manifest of files cannot say so"),
        Pooling::LastToken => rows[rows.len() - size..].to_vec(),
        Pooling::Max => tokens.fold(first(), |mut pooled, row| {
            pooled.iter_mut().zip(row).for_each(|(pooled, &value)| *pooled = pooled.max(value));
            pooled
        }),
        Pooling::Mean => {
            let count = tokens.len() as f32;
            tokens.next();
            let mut pooled = tokens.fold(first(), |mut pooled, row| {
                pooled.iter_mut().zip(row).for_each(|(pooled, &value)| *pooled += value);
                pooled
            });
            pooled.iter_mut().for_each(|value| *value /= count);
            pooled
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_is_the_mean_the_first_the_last_or_the_largest() {
        let rows = [1.0, 5.0, 3.0, 1.0, 2.0, 3.0];
        assert_eq!(pool(&rows, 2, Pooling::Mean), [2.0, 3.0]);
        assert_eq!(pool(&rows, 2, Pooling::Cls), [1.0, 5.0]);
        assert_eq!(pool(&rows, 2, Pooling::LastToken), [2.0, 3.0]);
        assert_eq!(pool(&rows, 2, Pooling::Max), [3.0, 5.0]);
    }
}
