//! What the gate knows of a text and its neighbour: cheap numbers, most of them of the tokens that differ.
//!
//! All of it is O(n + c d) for n tokens, c of them changed, and rows of d values. Every feature is finite and comes
//! from the arguments alone. What a feature is stands in [`NAMES`]; a gate knows them by that list, so one
//! trained on another list is refused.

use super::changes::Changes;
use super::lexicon::Lexicon;

/// How many there are.
pub(super) const COUNT: usize = 32;

/// Their names, in order. Shares are of the longer text where nothing else is said.
pub(super) const NAMES: [&str; COUNT] = [
    // 0: lengths
    "query_tokens",
    "neighbour_tokens",
    // The shorter by the longer.
    "length_ratio",
    // 3: the two as bags; weights are idfs
    "bag_changed",
    "bag_changed_share",
    // What both have, by what either has (weighted Jaccard).
    "bag_common_weight_share",
    "inserted_weight",
    "deleted_weight",
    "changed_weight_max",
    // 9: static vectors; the difference of the sums over tokens
    "static_difference",
    "static_difference_by_length",
    // The same with idf weights, by the length of the query's sum.
    "static_difference_relative",
    // Between what was put in and taken out, as sums; 1 for no change, 0 where only one of them is.
    "static_replacement_cosine",
    // 13: the two as sequences; a block counts the longer of its sides
    "aligned_changed",
    "aligned_changed_share",
    "blocks",
    "first_change_at",
    "last_change_at",
    "unchanged_prefix_share",
    "unchanged_suffix_share",
    "unchanged_run_share",
    // Sum over blocks of 1 / (1 + the tokens before it): what comes first often weighs more.
    "change_early",
    // 22: what kind of tokens changed; shares of the aligned change, both sides
    "punctuation_share",
    "digit_share",
    "continuation_share",
    "negations_changed",
    "words_changed",
    // Tokens that only stand elsewhere.
    "moved_share",
    // The same bag of tokens: 0 or 1.
    "same_bag",
    // The idfs of the aligned change, by those of the longer text.
    "aligned_weight_share",
    // 30: given
    "cosine_plain",
    "cosine_candidate",
];

/// In which direction each may move the gate: more of it makes closeness likelier (1), less likely (-1), or either (0).
pub(super) const DIRECTIONS: [i8; COUNT] =
    [0, 0, 1, 0, -1, 1, 0, 0, 0, 0, -1, -1, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 1, 1];

/// How near the two are by cheap vectors, from -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cosines {
    /// By the means of static token vectors.
    pub plain: f32,
    /// By the vector that found the neighbour.
    pub candidate: f32,
}

/// One value for each of [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Features(pub [f32; COUNT]);

/// The features of a pair. `row` gives a token's static vector, all of one length; an empty one for a token without.
#[must_use]
pub(super) fn features<'t>(
    changes: &Changes<'_>,
    lexicon: &Lexicon,
    row: impl Fn(u32) -> &'t [f32],
    cosines: Cosines,
) -> Features {
    let (query, neighbour) = (changes.query(), changes.neighbour());
    let (shorter, longer) = (query.len().min(neighbour.len()), query.len().max(neighbour.len()).max(1));
    let by_longer = |count: usize| count as f32 / longer as f32;

    let bag = Bag::of(changes, lexicon);
    let vectors = Vectors::of(changes, lexicon, row);
    let alignment = Alignment::of(changes, lexicon);
    let kind_share = |count: usize| count as f32 / alignment.tokens.max(1) as f32;

    let values = [
        query.len() as f32,
        neighbour.len() as f32,
        by_longer(shorter),
        bag.changed as f32,
        by_longer(bag.changed),
        bag.common_share,
        bag.inserted,
        bag.deleted,
        bag.max,
        vectors.difference,
        vectors.difference / longer as f32,
        vectors.relative,
        vectors.replacement,
        alignment.changed as f32,
        by_longer(alignment.changed),
        changes.blocks().len() as f32,
        alignment.first,
        alignment.last,
        by_longer(alignment.prefix),
        by_longer(alignment.suffix),
        by_longer(alignment.run_max),
        alignment.early,
        kind_share(alignment.punctuation),
        kind_share(alignment.digits),
        kind_share(alignment.continuations),
        alignment.negations as f32,
        alignment.words as f32,
        kind_share(alignment.tokens.saturating_sub(bag.changed)),
        f32::from(u8::from(bag.changed == 0)),
        alignment.weight_share,
        cosines.plain,
        cosines.candidate,
    ];
    Features(values.map(|value| if value.is_finite() { value } else { 0.0 }))
}

/// What the two differ in as bags.
struct Bag {
    changed: usize,
    common_share: f32,
    inserted: f32,
    deleted: f32,
    max: f32,
}

impl Bag {
    fn of(changes: &Changes<'_>, lexicon: &Lexicon) -> Self {
        let weight = |tokens: &[u32]| tokens.iter().map(|&token| lexicon.idf(token)).sum::<f32>();
        let (inserted, deleted) = (weight(changes.inserted()), weight(changes.deleted()));
        let either = weight(changes.query()) + deleted;
        let changed = changes.inserted().iter().chain(changes.deleted());
        Self {
            changed: changes.inserted().len() + changes.deleted().len(),
            common_share: if either > 0.0 { (either - inserted - deleted) / either } else { 1.0 },
            inserted,
            deleted,
            max: changed.map(|&token| lexicon.idf(token)).fold(0.0, f32::max),
        }
    }
}

/// What the two differ in by their static vectors.
struct Vectors {
    difference: f32,
    relative: f32,
    replacement: f32,
}

impl Vectors {
    fn of<'t>(changes: &Changes<'_>, lexicon: &Lexicon, row: impl Fn(u32) -> &'t [f32]) -> Self {
        let dims = changes.query().first().map_or(0, |&token| row(token).len());
        let sum = |tokens: &[u32], weight: &dyn Fn(u32) -> f32| {
            let mut sum = vec![0.0; dims];
            for &token in tokens {
                let weight = weight(token);
                for (sum, &value) in sum.iter_mut().zip(row(token)) {
                    *sum += weight * value;
                }
            }
            sum
        };
        let one = |_| 1.0;
        let idf = |token| lexicon.idf(token);
        let (inserted, deleted) = (sum(changes.inserted(), &one), sum(changes.deleted(), &one));
        let whole = length(&sum(changes.query(), &idf));
        let weighted = apart(&sum(changes.inserted(), &idf), &sum(changes.deleted(), &idf));
        let replacement = match (changes.inserted(), changes.deleted()) {
            ([], []) => 1.0,
            _ => cosine(&inserted, &deleted),
        };
        Self {
            difference: apart(&inserted, &deleted),
            relative: if whole > 0.0 { weighted / whole } else { 0.0 },
            replacement,
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(vector: &[f32]) -> f32 {
    dot(vector, vector).sqrt()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// 0 where one of the two is zero.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = length(a) * length(b);
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// What the two differ in as sequences.
struct Alignment {
    changed: usize,
    /// Of both sides of all blocks.
    tokens: usize,
    first: f32,
    last: f32,
    prefix: usize,
    suffix: usize,
    run_max: usize,
    early: f32,
    punctuation: usize,
    digits: usize,
    continuations: usize,
    negations: usize,
    words: usize,
    weight_share: f32,
}

impl Alignment {
    fn of(changes: &Changes<'_>, lexicon: &Lexicon) -> Self {
        let (query, neighbour) = (changes.query(), changes.neighbour());
        let longer = query.len().max(neighbour.len()).max(1) as f32;
        let mut of = Self {
            changed: 0,
            tokens: 0,
            first: 1.0,
            last: 0.0,
            prefix: query.len(),
            suffix: query.len(),
            run_max: 0,
            early: 0.0,
            punctuation: 0,
            digits: 0,
            continuations: 0,
            negations: 0,
            words: 0,
            weight_share: 0.0,
        };
        let (mut weight, mut from) = (0.0, 0);
        for block in changes.blocks() {
            of.changed += block.query.len().max(block.neighbour.len());
            of.run_max = of.run_max.max(block.query.start - from);
            of.early += 1.0 / (1.0 + block.query.start as f32);
            from = block.query.end;
            let mut words = [0; 2];
            for ((side, range), words) in
                [(query, &block.query), (neighbour, &block.neighbour)].into_iter().zip(&mut words)
            {
                *words = side[range.clone()].iter().filter(|&&token| !lexicon.is_continuation(token)).count();
                // A changed continuation changes the word it belongs to.
                if side.get(range.start).is_some_and(|&token| !range.is_empty() && lexicon.is_continuation(token)) {
                    *words += 1;
                }
                of.tokens += range.len();
                for at in range.clone() {
                    let token = side[at];
                    of.punctuation += usize::from(lexicon.is_punctuation(token));
                    of.digits += usize::from(lexicon.has_digit(token));
                    of.continuations += usize::from(lexicon.is_continuation(token));
                    of.negations += usize::from(lexicon.negates(side, at));
                    weight += lexicon.idf(token);
                }
            }
            of.words += words[0].max(words[1]);
        }
        of.run_max = of.run_max.max(query.len() - from);
        if let (Some(first), Some(last)) = (changes.blocks().first(), changes.blocks().last()) {
            of.prefix = first.query.start;
            of.suffix = query.len() - last.query.end;
            of.first = first.query.start as f32 / longer;
            of.last = last.query.end as f32 / longer;
        }
        let total = |tokens: &[u32]| tokens.iter().map(|&token| lexicon.idf(token)).sum::<f32>();
        let whole = total(query).max(total(neighbour));
        of.weight_share = if whole > 0.0 { weight / whole } else { 0.0 };
        of
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TABLE: [[f32; 2]; 6] = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [3.0, 4.0], [0.0, 0.0]];

    fn lexicon() -> Lexicon {
        let pieces = ["the", "not", "!", "v2", "word", "##s"].map(str::to_owned);
        Lexicon::new(&pieces, &[99, 9, 9, 9, 9, 9], 99)
    }

    fn of(query: &[u32], neighbour: &[u32]) -> BTreeMap<&'static str, f32> {
        let row = |token: u32| TABLE.get(token as usize).map_or(&[][..], |row| &row[..]);
        let cosines = Cosines { plain: 0.5, candidate: 0.25 };
        let features = features(&Changes::between(query, neighbour), &lexicon(), row, cosines);
        NAMES.into_iter().zip(features.0).collect()
    }

    #[test]
    fn names_are_all_different() {
        let names: std::collections::BTreeSet<_> = NAMES.into_iter().collect();
        assert_eq!(names.len(), COUNT);
    }

    #[test]
    fn a_text_and_itself_differ_in_nothing() {
        let same = of(&[0, 4, 5, 2], &[0, 4, 5, 2]);
        for name in NAMES {
            let expected = match name {
                "query_tokens" | "neighbour_tokens" => 4.0,
                "length_ratio"
                | "bag_common_weight_share"
                | "static_replacement_cosine"
                | "first_change_at"
                | "unchanged_prefix_share"
                | "unchanged_suffix_share"
                | "unchanged_run_share"
                | "same_bag" => 1.0,
                "cosine_plain" => 0.5,
                "cosine_candidate" => 0.25,
                _ => 0.0,
            };
            assert_eq!(same[name], expected, "{name}");
        }
    }

    #[test]
    fn a_change_is_counted_weighed_placed_and_named() {
        // "the word ! v2" of "the words ! not": a plural gone, a word replaced.
        let changed = of(&[0, 4, 2, 3], &[0, 4, 5, 2, 1]);
        let idf = 10f32.ln();
        let close = |name: &str, expected: f32| {
            assert!((changed[name] - expected).abs() < 1e-6, "{name}: {} is not {expected}", changed[name]);
        };
        for (name, expected) in [
            ("length_ratio", 0.8),
            ("bag_changed", 3.0),
            ("bag_changed_share", 0.6),
            ("bag_common_weight_share", 2.0 / 5.0),
            ("inserted_weight", idf),
            ("deleted_weight", 2.0 * idf),
            ("changed_weight_max", idf),
            // [-1, 0] was put in, [0, 1] + [0, 0] taken out.
            ("static_difference", 2f32.sqrt()),
            ("static_difference_by_length", 2f32.sqrt() / 5.0),
            // The query's weighted sum: [3, 4] + [1, 1] + [-1, 0], each by the same idf; "the" weighs nothing.
            ("static_difference_relative", 2f32.sqrt() / 34f32.sqrt()),
            ("static_replacement_cosine", 0.0),
            ("aligned_changed", 2.0),
            ("blocks", 2.0),
            ("first_change_at", 0.4),
            ("last_change_at", 0.8),
            ("unchanged_prefix_share", 0.4),
            ("unchanged_suffix_share", 0.0),
            ("unchanged_run_share", 0.4),
            ("change_early", 1.0 / 3.0 + 1.0 / 4.0),
            ("punctuation_share", 0.0),
            ("digit_share", 1.0 / 3.0),
            ("continuation_share", 1.0 / 3.0),
            ("negations_changed", 1.0),
            ("words_changed", 2.0),
            ("moved_share", 0.0),
            ("same_bag", 0.0),
            ("aligned_weight_share", 3.0 / 4.0),
        ] {
            close(name, expected);
        }
    }

    #[test]
    fn tokens_that_only_moved_are_no_change_of_the_bag() {
        let moved = of(&[4, 0, 1], &[0, 1, 4]);
        assert_eq!((moved["same_bag"], moved["moved_share"], moved["static_difference"]), (1.0, 1.0, 0.0));
        assert!(moved["aligned_changed_share"] > 0.0);
    }

    #[test]
    fn what_is_not_finite_is_nought() {
        let row = |_: u32| &[f32::NAN, f32::INFINITY][..];
        let cosines = Cosines { plain: f32::NAN, candidate: f32::NEG_INFINITY };
        let of = features(&Changes::between(&[0, 1], &[2]), &lexicon(), row, cosines);
        assert!(of.0.iter().all(|value| value.is_finite()));
    }

    proptest! {
        #[test]
        fn any_two_texts_have_finite_features_and_shares_from_0_to_1(
            query in prop::collection::vec(0u32..9, 0..30),
            neighbour in prop::collection::vec(0u32..9, 0..30),
        ) {
            for (name, value) in of(&query, &neighbour) {
                prop_assert!(value.is_finite(), "{}", name);
                // Those of what changed count both sides, and may pass 1.
                let of_both = ["bag_changed_share", "aligned_changed_share", "aligned_weight_share"].contains(&name);
                if name.ends_with("_share") && !of_both {
                    prop_assert!((-1e-6..=1.0 + 1e-6).contains(&value), "{}: {}", name, value);
                }
            }
        }
    }
}
