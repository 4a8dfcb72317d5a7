//! The tokenizer of a model whose own is not here: every character is a token, and its id is its Unicode number.
//!
//! So a text can be cut, counted and told from others as any model's, and the engine gets back exactly the text that is to be
//! sent. It counts characters where others count tokens; what the endpoint bills is in the metrics.

use super::super::{EngineError, Token, Tokenizer};
use crate::domain::{Tokens, Truncation, TruncationDirection};

/// One past the last Unicode character.
const VOCABULARY: usize = char::MAX as usize + 1;

pub(super) struct Characters {
    /// The model's name, for errors.
    pub(super) model: String,
}

impl Tokenizer for Characters {
    fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, EngineError> {
        let tokens = |text: &&str| {
            let count = prompt.chars().count() + text.chars().count();
            let kept = count.min(truncation.max_tokens);
            let skipped = match truncation.direction {
                TruncationDirection::Right => 0,
                TruncationDirection::Left => count - kept,
            };
            let ids = prompt.chars().chain(text.chars()).skip(skipped).take(kept).map(u32::from).collect();
            Tokens { ids, count_before_truncation: count }
        };
        Ok(texts.iter().map(tokens).collect())
    }

    fn inspect(&self, _: &str, _: &str, _: bool) -> Result<Vec<Token>, EngineError> {
        Err(EngineError::TokenizerUnknown { model: self.model.clone() })
    }

    fn vocabulary_size(&self) -> usize {
        VOCABULARY
    }

    fn piece(&self, id: u32) -> Option<String> {
        char::from_u32(id).map(String::from)
    }
}

/// The text that ids stand for; the error is an id that is no character, which only a caller who sent ids can cause.
pub(super) fn text(ids: &[u32]) -> Result<String, u32> {
    ids.iter().map(|&id| char::from_u32(id).ok_or(id)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokenize(text: &str, prompt: &str, direction: TruncationDirection, max_tokens: usize) -> Tokens {
        let characters = Characters { model: "m".to_owned() };
        characters.tokenize(&[text], prompt, Truncation { direction, max_tokens }).unwrap().remove(0)
    }

    proptest! {
        #[test]
        fn ids_turn_back_into_prompt_and_text(prompt in ".{0,10}", given in "\\PC{0,40}") {
            let tokens = tokenize(&given, &prompt, TruncationDirection::Right, usize::MAX);
            prop_assert_eq!(text(&tokens.ids).unwrap(), format!("{prompt}{given}"));
            prop_assert!(!tokens.truncated());
        }
    }

    #[test]
    fn a_long_text_is_cut_at_the_end_that_is_named() {
        let right = tokenize("zwölf", "", TruncationDirection::Right, 3);
        assert_eq!((text(&right.ids).unwrap().as_str(), right.count_before_truncation), ("zwö", 5));
        let left = tokenize("zwölf", "a", TruncationDirection::Left, 3);
        assert_eq!((text(&left.ids).unwrap().as_str(), left.count_before_truncation), ("ölf", 6));
    }

    #[test]
    fn an_id_that_is_no_character_is_named() {
        assert_eq!(text(&[0x61, 0xd800]), Err(0xd800));
    }
}
