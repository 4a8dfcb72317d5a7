//! Which waiting texts go to the engine together. Pure.

use std::cmp::Reverse;

/// Cuts texts of the given lengths (in tokens) into batches of at most `tokens_max` tokens and `texts_max` texts.
///
/// Answers lists of indexes into `lengths`, each index once. Texts of like length stand together, longest first, so
/// that an engine that pads wastes little and one that does not can treat equal lengths as one tensor. A text longer than the
/// budget is a batch of its own.
#[must_use]
pub fn plan(lengths: &[usize], tokens_max: usize, texts_max: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| Reverse(lengths[index]));
    let mut rest = order.as_slice();
    let mut batches: Vec<Vec<usize>> = Vec::new();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(cut(rest.iter().map(|&index| lengths[index]), tokens_max, texts_max));
        batches.push(batch.to_vec());
        rest = after;
    }
    batches
}

/// How many of the texts of the given lengths, from the first on, go together: at least one, if there is one.
pub(super) fn cut(lengths: impl IntoIterator<Item = usize>, tokens_max: usize, texts_max: usize) -> usize {
    let mut tokens = 0;
    let mut texts = 0;
    for length in lengths {
        if texts > 0 && (texts == texts_max || tokens + length > tokens_max) {
            break;
        }
        tokens += length;
        texts += 1;
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_is_in_exactly_one_batch_and_no_batch_is_over_budget(
            lengths in prop::collection::vec(0usize..600, 0..300), tokens_max in 1usize..1000, texts_max in 1usize..64,
        ) {
            let batches = plan(&lengths, tokens_max, texts_max);
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let tokens: usize = batch.iter().map(|&index| lengths[index]).sum();
                prop_assert!(!batch.is_empty() && batch.len() <= texts_max);
                prop_assert!(tokens <= tokens_max || batch.len() == 1);
            }
        }
    }

    #[test]
    fn texts_of_like_length_ride_together() {
        assert_eq!(plan(&[1, 9, 1, 9], 18, 8), vec![vec![1, 3], vec![0, 2]]);
    }
}
