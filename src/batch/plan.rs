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
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for index in order {
        match batches.last_mut() {
            Some(batch) if batch.len() < texts_max && tokens + lengths[index] <= tokens_max => {
                tokens += lengths[index];
                batch.push(index);
            }
            _ => {
                tokens = lengths[index];
                batches.push(vec![index]);
            }
        }
    }
    batches
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
