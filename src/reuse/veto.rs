//! What is never trusted, whatever the gate says of it.
//!
//! A model may give two texts nearly the same vector although they say opposite things, and what a vector is for may hang on
//! just that. A small change of one of three kinds is vetoed, for the harm it may do rather than for how far vectors are apart:
//!
//! | veto | an example |
//! | --- | --- |
//! | `negation` | `is safe` and `is not safe` |
//! | `number` | `version 1.2` and `version 1.3` |
//! | `order` | `a depends on b` and `b depends on a` |
//!
//! A passage that was put in or taken out whole (a header with a date, a sentence) says something of its own: the numbers and
//! negations in it are the gate's to judge.
//!
//! Vetoes err on the side of computing. They see tokens, not meaning: a change that reverses a text by other words
//! (`fast`, `slow`) passes, and is the gate's to judge.

use super::changes::{Block, Changes};
use super::lexicon::Lexicon;

/// From so many words on, what was put in or taken out is a passage of its own, as far as its numbers are concerned, and as far
/// as its negations are.
const PASSAGE_WORDS: usize = 2;
const SENTENCE_WORDS: usize = 6;
/// A word is rare, and its moving elsewhere more than a matter of style, if at most one document in so many has it.
const RARE_DOCUMENTS: f32 = 20.0;
/// So many rare words that stand elsewhere are a change of order, whatever else has changed.
const MOVED_WORDS_MIN: usize = 2;

/// Why a neighbour's vector may not stand for a text's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Veto {
    /// A negation was put in, taken out, or put elsewhere.
    Negation,
    /// A token with a digit, or a sign before one, has changed.
    Number,
    /// The same words stand in another order.
    Order,
}

impl Veto {
    /// Its name in metrics and documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Negation => "negation",
            Self::Number => "number",
            Self::Order => "order",
        }
    }
}

/// The first veto that applies, in the order of [`Veto`]'s variants; `None` if none does.
#[must_use]
pub(super) fn veto(changes: &Changes<'_>, lexicon: &Lexicon) -> Option<Veto> {
    let blocks = changes.blocks();
    if blocks.iter().any(|block| negation_changed(block, changes, lexicon)) {
        Some(Veto::Negation)
    } else if blocks.iter().any(|block| number_changed(block, changes, lexicon)) {
        Some(Veto::Number)
    } else if order_changed(changes, lexicon) {
        Some(Veto::Order)
    } else {
        None
    }
}

/// `cannot` for `can not` is no change: they are counted.
fn negation_changed(block: &Block, changes: &Changes<'_>, lexicon: &Lexicon) -> bool {
    if is_passage(block, changes, lexicon, SENTENCE_WORDS) {
        return false;
    }
    let count = |tokens: &[u32], range: &std::ops::Range<usize>| {
        range.clone().filter(|&at| lexicon.negates(tokens, at)).count()
    };
    count(changes.query(), &block.query) != count(changes.neighbour(), &block.neighbour)
}

/// Whether a block is so many words or more that only one side has.
fn is_passage(block: &Block, changes: &Changes<'_>, lexicon: &Lexicon, words_min: usize) -> bool {
    let passage = match (block.query.is_empty(), block.neighbour.is_empty()) {
        (true, false) => &changes.neighbour()[block.neighbour.clone()],
        (false, true) => &changes.query()[block.query.clone()],
        _ => return false,
    };
    let is_word =
        |&&token: &&u32| !lexicon.is_punctuation(token) && !lexicon.has_digit(token) && !lexicon.is_continuation(token);
    passage.iter().filter(is_word).count() >= words_min
}

fn number_changed(block: &Block, changes: &Changes<'_>, lexicon: &Lexicon) -> bool {
    if is_passage(block, changes, lexicon, PASSAGE_WORDS) {
        return false;
    }
    let query = &changes.query()[block.query.clone()];
    let neighbour = &changes.neighbour()[block.neighbour.clone()];
    let digits =
        |tokens: &[u32]| -> Vec<u32> { tokens.iter().copied().filter(|&token| lexicon.has_digit(token)).collect() };
    if digits(query) != digits(neighbour) {
        return true;
    }
    // A sign, or a decimal point: the token that follows is the same on both sides.
    let ends_in_sign = |tokens: &[u32]| tokens.last().is_some_and(|&token| lexicon.is_punctuation(token));
    let followed_by_digit = changes.query().get(block.query.end).is_some_and(|&token| lexicon.has_digit(token));
    followed_by_digit && (ends_in_sign(query) || ends_in_sign(neighbour))
}

fn order_changed(changes: &Changes<'_>, lexicon: &Lexicon) -> bool {
    if changes.blocks().is_empty() {
        return false;
    }
    let is_word = |token: &u32| !lexicon.is_punctuation(*token);
    let bags_differ = changes.inserted().iter().chain(changes.deleted()).any(is_word);
    let mut put_in = words_in(changes, |block| &changes.query()[block.query.clone()], is_word);
    let mut taken_out = words_in(changes, |block| &changes.neighbour()[block.neighbour.clone()], is_word);
    if !bags_differ {
        return !put_in.is_empty();
    }
    put_in.retain(|&token| lexicon.idf(token) >= RARE_DOCUMENTS.ln());
    put_in.dedup();
    taken_out.dedup();
    put_in.iter().filter(|&token| taken_out.binary_search(token).is_ok()).count() >= MOVED_WORDS_MIN
}

/// The words of one side of all blocks, sorted.
fn words_in<'a>(
    changes: &'a Changes<'_>,
    side: impl Fn(&Block) -> &'a [u32],
    is_word: impl Fn(&u32) -> bool,
) -> Vec<u32> {
    let mut words: Vec<u32> = changes.blocks().iter().flat_map(side).copied().filter(is_word).collect();
    words.sort_unstable();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary made of the words themselves; every second document has `the`, `is` and `on`, none the others.
    fn verdict(query: &str, neighbour: &str) -> Option<Veto> {
        let mut pieces: Vec<String> = ["the", "is", "on"].map(str::to_owned).to_vec();
        let mut ids = |text: &str| -> Vec<u32> {
            let words = text.split(' ').filter(|word| !word.is_empty());
            words
                .map(|word| {
                    let at = pieces.iter().position(|piece| piece == word).unwrap_or_else(|| {
                        pieces.push(word.to_owned());
                        pieces.len() - 1
                    });
                    at as u32
                })
                .collect()
        };
        let (query, neighbour) = (ids(query), ids(neighbour));
        let lexicon = Lexicon::new(&pieces, &[500, 500, 500], 1000);
        veto(&Changes::between(&query, &neighbour), &lexicon)
    }

    #[test]
    fn a_negation_on_one_side_is_vetoed_and_another_spelling_of_it_is_not() {
        assert_eq!(verdict("it is not safe", "it is safe"), Some(Veto::Negation));
        assert_eq!(verdict("it is safe", "it is un ##safe"), Some(Veto::Negation));
        assert_eq!(verdict("they don ' t know", "they do know"), Some(Veto::Negation));
        assert_eq!(verdict("you cannot go", "you can not go"), None);
        assert_eq!(verdict("it is never safe", "it is not safe"), None);
    }

    #[test]
    fn a_negation_put_elsewhere_is_vetoed() {
        assert_eq!(verdict("a is not b but c", "a is b but not c"), Some(Veto::Negation));
    }

    #[test]
    fn numbers_that_differ_are_vetoed_and_words_beside_a_number_are_not() {
        assert_eq!(verdict("version 1 . 3", "version 1 . 2"), Some(Veto::Number));
        assert_eq!(verdict("released in 2024", "released"), Some(Veto::Number));
        assert_eq!(verdict("v ##12 is out", "v ##13 is out"), Some(Veto::Number));
        assert_eq!(verdict("about 12 people", "nearly 12 people"), None);
        assert_eq!(verdict("12 persons", "12 people"), None);
    }

    #[test]
    fn a_passage_of_its_own_may_have_numbers_and_a_sentence_negations() {
        assert_eq!(verdict("page 3 of 20 : the manual", ": the manual"), None);
        assert_eq!(verdict("it is safe", "it is safe last updated 2024 - 05"), None);
        assert_eq!(verdict("it is not very safe", "it is safe"), Some(Veto::Negation));
        assert_eq!(verdict("it is safe . we do not say for how long", "it is safe"), None);
        assert_eq!(verdict("page 3 of 20", "page 4 of 20"), Some(Veto::Number));
    }

    #[test]
    fn a_sign_before_a_number_and_a_decimal_point_are_vetoed() {
        assert_eq!(verdict("at - 5 degrees", "at 5 degrees"), Some(Veto::Number));
        assert_eq!(verdict("costs 1 , 5", "costs 1 . 5"), Some(Veto::Number));
        assert_eq!(verdict("it costs 5 .", "it costs 5"), None);
    }

    #[test]
    fn the_same_words_in_another_order_are_vetoed_also_with_another_change() {
        assert_eq!(verdict("alice owes bob", "bob owes alice"), Some(Veto::Order));
        assert_eq!(verdict("alice owes bob !", "bob owes alice"), Some(Veto::Order));
        assert_eq!(verdict("alice still owes bob", "bob owes alice"), Some(Veto::Order));
    }

    #[test]
    fn common_words_that_move_and_harmless_edits_are_not_vetoed() {
        assert_eq!(verdict("alice is on time , the best", "the alice is there"), None);
        assert_eq!(verdict("alice , or bob", "alice or bob"), None);
        assert_eq!(verdict("alice or bob", "alice or bob"), None);
        assert_eq!(verdict("", "alice"), None);
    }
}
