//! What each token of a vocabulary is: how rare, and of what kind.
//!
//! Made once from the tokenizer's pieces and from how many documents had each; a look-up is one index. It reads the three
//! common spellings: WordPiece (`##ing`), byte-level BPE (`Ġword`) and SentencePiece (`▁word`). An id past the vocabulary
//! is a rare word without properties.
//!
//! The list of negations is English, as are the texts the gate was designed on. In other languages the gate has to learn
//! from examples what a negation costs.

use std::collections::HashMap;

/// Words that turn a statement round, or take something from it.
const NEGATIONS: &[&str] = &[
    "not",
    "no",
    "non",
    "nor",
    "none",
    "never",
    "neither",
    "nothing",
    "nobody",
    "nowhere",
    "without",
    "cannot",
    "n't",
    "dont",
    "doesnt",
    "isnt",
    "cant",
    "wont",
    "dis",
    "un",
    "off",
    "unable",
    "unlike",
    "unsafe",
    "unsupported",
    "impossible",
    "invalid",
    "incorrect",
    "disable",
    "disables",
    "disabled",
];
/// A `t` after one of these is a negation: `don't` in three pieces.
const APOSTROPHES: &[&str] = &["'", "\u{2019}"];

const PUNCTUATION: u8 = 1;
const DIGIT: u8 = 1 << 1;
const CONTINUATION: u8 = 1 << 2;
const NEGATION: u8 = 1 << 3;
const APOSTROPHE: u8 = 1 << 4;
const LONE_T: u8 = 1 << 5;

#[derive(Clone, Copy, Debug)]
struct Entry {
    idf: f32,
    kind: u8,
}

/// Rarity and kind of every token of a vocabulary.
#[derive(Clone, Debug)]
pub struct Lexicon {
    entries: Box<[Entry]>,
    unknown: Entry,
}

impl Lexicon {
    /// Of a vocabulary's pieces, by token id, and of the number of documents, of `documents` in all, that had each;
    /// ids that `document_counts` does not reach were in none.
    #[must_use]
    pub fn new(pieces: &[String], document_counts: &[u32], documents: u32) -> Self {
        let spelling = Spelling::of(pieces);
        let entries = pieces
            .iter()
            .enumerate()
            .map(|(id, piece)| {
                let count = document_counts.get(id).copied().unwrap_or(0);
                Entry { idf: idf(count, documents), kind: spelling.kind(piece) }
            })
            .collect();
        Self { entries, unknown: Entry { idf: idf(0, documents), kind: 0 } }
    }

    fn entry(&self, token: u32) -> Entry {
        usize::try_from(token).ok().and_then(|id| self.entries.get(id)).copied().unwrap_or(self.unknown)
    }

    fn is(&self, token: u32, kind: u8) -> bool {
        self.entry(token).kind & kind != 0
    }

    /// The inverse document frequency, `ln((1 + documents) / (1 + documents with the token))`; never negative.
    #[must_use]
    pub fn idf(&self, token: u32) -> f32 {
        self.entry(token).idf
    }

    /// Whether it has neither a letter nor a digit.
    #[must_use]
    pub fn is_punctuation(&self, token: u32) -> bool {
        self.is(token, PUNCTUATION)
    }

    /// Whether it has a digit.
    #[must_use]
    pub fn has_digit(&self, token: u32) -> bool {
        self.is(token, DIGIT)
    }

    /// Whether it goes on with the word of the token before it.
    #[must_use]
    pub fn is_continuation(&self, token: u32) -> bool {
        self.is(token, CONTINUATION)
    }

    /// Whether it is a negation by itself.
    #[must_use]
    pub fn is_negation(&self, token: u32) -> bool {
        self.is(token, NEGATION)
    }

    /// Whether `tokens[at]` is a negation where it stands: by itself, or as the `t` of `don't`.
    ///
    /// # Panics
    /// If `at` is not within `tokens`.
    #[must_use]
    pub fn negates(&self, tokens: &[u32], at: usize) -> bool {
        let kind = self.entry(tokens[at]).kind;
        kind & NEGATION != 0 || (kind & LONE_T != 0 && at > 0 && self.is(tokens[at - 1], APOSTROPHE))
    }
}

fn idf(count: u32, documents: u32) -> f32 {
    let share = (1.0 + f64::from(documents)) / (1.0 + f64::from(count.min(documents)));
    share.ln() as f32
}

/// How a vocabulary says where words begin.
enum Spelling {
    /// `##` before what goes on with a word.
    WordPiece,
    /// `Ġ` before what begins one; every character stands for a byte.
    Bytes(HashMap<char, u8>),
    /// `▁` before what begins one.
    SentencePiece,
}

impl Spelling {
    fn of(pieces: &[String]) -> Self {
        let with = |prefix: &str| pieces.iter().filter(|piece| piece.starts_with(prefix)).count();
        let (continued, bytes, sentence) = (with("##"), with("Ġ"), with("▁"));
        if bytes > continued.max(sentence) {
            Self::Bytes(byte_alphabet())
        } else if sentence > continued {
            Self::SentencePiece
        } else {
            Self::WordPiece
        }
    }

    fn kind(&self, piece: &str) -> u8 {
        if is_special(piece) {
            return 0;
        }
        let (text, marked) = match self {
            Self::WordPiece => match piece.strip_prefix("##") {
                Some(rest) => (rest.to_owned(), false),
                None => (piece.to_owned(), true),
            },
            Self::SentencePiece => match piece.strip_prefix('▁') {
                Some(rest) => (rest.replace('▁', " "), true),
                None => (piece.to_owned(), false),
            },
            Self::Bytes(alphabet) => {
                let bytes: Vec<u8> = piece.chars().filter_map(|c| alphabet.get(&c).copied()).collect();
                let text = String::from_utf8_lossy(&bytes);
                (text.trim().to_owned(), text.starts_with(char::is_whitespace))
            }
        };
        let text = text.to_lowercase();
        // A part of a character is part of a word, for all that can be known.
        let is_word = |c: char| c.is_alphanumeric() || c == char::REPLACEMENT_CHARACTER;
        let mut kind = 0;
        if !text.contains(is_word) {
            kind |= PUNCTUATION;
        } else if !marked && text.starts_with(is_word) {
            kind |= CONTINUATION;
        }
        if text.contains(char::is_numeric) {
            kind |= DIGIT;
        }
        // Where marks stand for a space, a word after a bracket has none; short ones are rather the end of another word.
        let may_begin = marked || !matches!(self, Self::WordPiece) && (text == "not" || text.len() > 3);
        if may_begin && NEGATIONS.contains(&text.as_str()) || text.ends_with("n't") {
            kind |= NEGATION;
        }
        if APOSTROPHES.contains(&text.as_str()) {
            kind |= APOSTROPHE;
        }
        if text == "'t" || text == "\u{2019}t" {
            kind |= NEGATION;
        }
        if text == "t" {
            kind |= LONE_T;
        }
        kind
    }
}

/// `[CLS]`, `<s>`, `<|endoftext|>`, `<0x0A>`: none of them is text.
fn is_special(piece: &str) -> bool {
    piece.len() > 2
        && (piece.starts_with('[') && piece.ends_with(']') || piece.starts_with('<') && piece.ends_with('>'))
}

/// The characters of byte-level BPE: printable bytes stand for themselves, the others for the code points from 256 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 256;
    (0..=255u8)
        .filter_map(|byte| {
            let itself = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let code = if itself { u32::from(byte) } else { next };
            next += u32::from(!itself);
            char::from_u32(code).map(|c| (c, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lexicon(pieces: &[&str]) -> Lexicon {
        let pieces: Vec<String> = pieces.iter().map(|&piece| piece.to_owned()).collect();
        Lexicon::new(&pieces, &[], 0)
    }

    #[test]
    fn the_idf_is_that_of_the_formula_and_an_unknown_token_is_as_rare_as_one_in_no_document() {
        let pieces = ["a", "b", "c"].map(str::to_owned);
        let lexicon = Lexicon::new(&pieces, &[99, 9], 99);
        assert_eq!([0, 1, 2].map(|id| lexicon.idf(id)), [0.0, 10f64.ln() as f32, 100f64.ln() as f32]);
        assert_eq!(lexicon.idf(u32::MAX), lexicon.idf(2));
        assert!(Lexicon::new(&pieces, &[1000], 10).idf(0) >= 0.0);
        assert_eq!(Lexicon::new(&[], &[], 0).idf(7), 0.0);
    }

    #[test]
    fn kinds_are_the_same_in_all_three_spellings() {
        // a word, a continuation, punctuation, a number, a negation
        let spellings = [
            lexicon(&["word", "##ing", "##!", "v2", "not"]),
            lexicon(&["Ġword", "ing", "!", "Ġv2", "Ġnot"]),
            lexicon(&["▁word", "ing", "!", "▁v2", "▁not"]),
        ];
        for lexicon in &spellings {
            assert_eq!([0, 1, 2, 3, 4].map(|id| lexicon.is_continuation(id)), [false, true, false, false, false]);
            assert_eq!([0, 1, 2, 3, 4].map(|id| lexicon.is_punctuation(id)), [false, false, true, false, false]);
            assert_eq!([0, 1, 2, 3, 4].map(|id| lexicon.has_digit(id)), [false, false, false, true, false]);
            assert_eq!([0, 1, 2, 3, 4].map(|id| lexicon.is_negation(id)), [false, false, false, false, true]);
        }
    }

    #[test]
    fn a_negation_inside_a_word_is_none_and_a_prefix_that_stands_alone_is_one() {
        let lexicon = lexicon(&["un", "##un", "##free", "##not", "dis", "NOT", "note", "[UNK]", "</s>"]);
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6].map(|id| lexicon.is_negation(id)),
            [true, false, false, false, true, true, false]
        );
        assert!(!lexicon.is_punctuation(7) && !lexicon.is_punctuation(8));
    }

    #[test]
    fn the_t_of_dont_is_a_negation_and_no_other_t_is() {
        let lexicon = lexicon(&["don", "'", "t", "##s", "n't", "'t"]);
        assert!(lexicon.negates(&[0, 1, 2], 2) && lexicon.negates(&[4], 0) && lexicon.negates(&[0, 5], 1));
        assert!(!lexicon.negates(&[2, 1, 0], 0) && !lexicon.negates(&[0, 2], 1) && !lexicon.negates(&[0, 1, 2], 1));
    }

    #[test]
    fn bytes_are_read_as_the_text_they_stand_for() {
        // A right quotation mark, a newline, e with an acute accent, half a character.
        let lexicon = lexicon(&["âĢĻ", "Ċ", "Ã©t", "âĢ", "Ġa"]);
        assert_eq!([0, 1, 2, 3].map(|id| lexicon.is_punctuation(id)), [true, true, false, false]);
        assert!(lexicon.is_continuation(2) && !lexicon.is_continuation(4));
    }
}
