//! What differs between two texts, token by token.

use std::ops::Range;

use similar::{Algorithm, DiffTag, capture_diff_slices};

/// Tokens of the neighbour in whose place others, or none, stand in the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where in the query; empty for a deletion.
    pub query: Range<usize>,
    /// Where in the neighbour; empty for an insertion.
    pub neighbour: Range<usize>,
}

/// Two token sequences and where they differ.
#[derive(Clone, Debug)]
pub(super) struct Changes<'a> {
    query: &'a [u32],
    neighbour: &'a [u32],
    blocks: Vec<Block>,
    /// Tokens that the query has more often, once for each time; sorted.
    inserted: Vec<u32>,
    /// Tokens that the neighbour has more often, once for each time; sorted.
    deleted: Vec<u32>,
}

impl<'a> Changes<'a> {
    /// From a cached text to the text in question. By the algorithm of Hunt and Szymanski, in O((n + r) log n) for n tokens
    /// and r pairs of equal ones: with two texts that have nothing to do with each other it ends as soon.
    #[must_use]
    pub(super) fn between(query: &'a [u32], neighbour: &'a [u32]) -> Self {
        let prefix = query.iter().zip(neighbour).take_while(|(a, b)| a == b).count();
        let (rest_query, rest_neighbour) = (&query[prefix..], &neighbour[prefix..]);
        let suffix = rest_query.iter().rev().zip(rest_neighbour.iter().rev()).take_while(|(a, b)| a == b).count();
        let rest_query = &rest_query[..rest_query.len() - suffix];
        let rest_neighbour = &rest_neighbour[..rest_neighbour.len() - suffix];

        let blocks = if rest_query.is_empty() && rest_neighbour.is_empty() {
            Vec::new()
        } else if rest_query.is_empty() || rest_neighbour.is_empty() {
            vec![Block { query: prefix..prefix + rest_query.len(), neighbour: prefix..prefix + rest_neighbour.len() }]
        } else {
            blocks_between(rest_query, rest_neighbour, prefix)
        };
        let (inserted, deleted) = bags_apart(rest_query, rest_neighbour);
        Self { query, neighbour, blocks, inserted, deleted }
    }

    /// The text in question.
    #[must_use]
    pub(super) fn query(&self) -> &'a [u32] {
        self.query
    }

    /// The cached text.
    #[must_use]
    pub(super) fn neighbour(&self) -> &'a [u32] {
        self.neighbour
    }

    /// Where they differ, from left to right; between two blocks stands at least one token of both.
    #[must_use]
    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// What the query has more often than the neighbour, wherever it stands: the difference of the two as bags.
    #[must_use]
    pub(super) fn inserted(&self) -> &[u32] {
        &self.inserted
    }

    /// What the neighbour has more often than the query.
    #[must_use]
    pub(super) fn deleted(&self) -> &[u32] {
        &self.deleted
    }
}

fn blocks_between(query: &[u32], neighbour: &[u32], offset: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for op in capture_diff_slices(Algorithm::Hunt, neighbour, query) {
        let (tag, neighbour, query) = op.as_tag_tuple();
        if tag == DiffTag::Equal {
            continue;
        }
        let query = query.start + offset..query.end + offset;
        let neighbour = neighbour.start + offset..neighbour.end + offset;
        match blocks.last_mut() {
            Some(last) if last.query.end == query.start && last.neighbour.end == neighbour.start => {
                last.query.end = query.end;
                last.neighbour.end = neighbour.end;
            }
            _ => blocks.push(Block { query, neighbour }),
        }
    }
    blocks
}

/// What each has more often than the other, by merging the two in order.
fn bags_apart(query: &[u32], neighbour: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let sorted = |tokens: &[u32]| {
        let mut tokens = tokens.to_vec();
        tokens.sort_unstable();
        tokens
    };
    let (query, neighbour) = (sorted(query), sorted(neighbour));
    let (mut inserted, mut deleted) = (Vec::new(), Vec::new());
    let (mut a, mut b) = (query.iter().peekable(), neighbour.iter().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x == y => {
                a.next();
                b.next();
            }
            (Some(x), y) if y.is_none_or(|y| x < y) => inserted.extend(a.next()),
            (_, Some(_)) => deleted.extend(b.next()),
            _ => return (inserted, deleted),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(query: &[u32], neighbour: &[u32]) -> Vec<(Range<usize>, Range<usize>)> {
        let changes = Changes::between(query, neighbour);
        changes.blocks().iter().map(|block| (block.query.clone(), block.neighbour.clone())).collect()
    }

    #[test]
    fn a_replacement_an_insertion_and_a_deletion_are_where_they_were_made() {
        assert_eq!(blocks(&[1, 9, 3], &[1, 2, 3]), [(1..2, 1..2)]);
        assert_eq!(blocks(&[1, 2, 9, 3], &[1, 2, 3]), [(2..3, 2..2)]);
        assert_eq!(blocks(&[1, 3], &[1, 2, 3]), [(1..1, 1..2)]);
        assert_eq!(blocks(&[9, 1, 2, 3, 8], &[7, 1, 2, 3]), [(0..1, 0..1), (4..5, 4..4)]);
        assert_eq!(blocks(&[1, 2], &[1, 2]), []);
        assert_eq!(blocks(&[], &[1]), [(0..0, 0..1)]);
    }

    #[test]
    fn the_bags_know_how_often_and_not_where() {
        let changes = Changes::between(&[1, 2, 2, 3, 5], &[5, 2, 1, 4]);
        assert_eq!((changes.inserted(), changes.deleted()), (&[2, 3][..], &[4][..]));
        let swapped = Changes::between(&[1, 2, 3], &[3, 2, 1]);
        assert!(swapped.inserted().is_empty() && swapped.deleted().is_empty() && !swapped.blocks().is_empty());
    }

    proptest! {
        #[test]
        fn putting_the_blocks_in_makes_the_query_of_the_neighbour(
            query in prop::collection::vec(0u32..6, 0..40),
            neighbour in prop::collection::vec(0u32..6, 0..40),
        ) {
            let changes = Changes::between(&query, &neighbour);
            let (mut made, mut at) = (Vec::<u32>::new(), 0);
            for block in changes.blocks() {
                made.extend(&neighbour[at..block.neighbour.start]);
                prop_assert_eq!(made.len(), block.query.start);
                prop_assert!(block.query.start != block.query.end || block.neighbour.start != block.neighbour.end);
                made.extend(&query[block.query.clone()]);
                at = block.neighbour.end;
            }
            made.extend(&neighbour[at..]);
            prop_assert_eq!(made, query.clone());
            prop_assert_eq!(
                query.len() + changes.deleted().len(),
                neighbour.len() + changes.inserted().len()
            );
        }
    }
}
