//! The tokenizer of a model's `tokenizer.json`.
//!
//! Padding and truncation written into the file are switched off: nothing is padded, and cutting is done here, so that the
//! length before it is known. A long text is tokenised piece by piece where that provably gives the same ids, so that
//! memory is bounded by the piece and not by the text.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::{Encoding, PreTokenizerWrapper};

use super::{EngineError, Token, Tokenizer};
use crate::domain::{Tokens, Truncation, TruncationDirection};

/// Longer texts are tokenised in pieces of about this size, each ending where a word certainly ends.
const PIECE_BYTES: usize = 64 << 10;

pub(super) struct ModelTokenizer {
    inner: tokenizers::Tokenizer,
    /// How many special tokens the model's template adds.
    special_count: usize,
    /// Whether words end at every white space and punctuation, as BERT's do.
    splits_at_words: bool,
}

impl ModelTokenizer {
    pub(super) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, EngineError> {
        let invalid =
            |error: tokenizers::Error| EngineError::Invalid { path: path.to_owned(), reason: error.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(invalid)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(invalid)?;
        let special_count = inner.encode_fast("", true).map_err(invalid)?.len();
        let splits_at_words = matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)));
        Ok(Self { inner, special_count, splits_at_words })
    }

    fn tokenize_one(&self, text: &str, prompt: &str, truncation: Truncation) -> Result<Tokens, EngineError> {
        let whole;
        let text = if prompt.is_empty() {
            text
        } else {
            whole = format!("{prompt}{text}");
            &whole
        };
        let room = truncation.max_tokens.saturating_sub(self.special_count);
        let (count, mut kept) = self.encode_pieces(text, room, truncation.direction)?;
        cut(&mut kept, room, truncation.direction);
        let encoding = self.inner.post_process(kept, None, true).map_err(failed)?;
        Ok(Tokens { ids: encoding.get_ids().into(), count_before_truncation: count + self.special_count })
    }

    /// Counts a text's tokens, special ones apart, and keeps the first or last `room` of them, or somewhat more.
    fn encode_pieces(
        &self,
        text: &str,
        room: usize,
        direction: TruncationDirection,
    ) -> Result<(usize, Encoding), EngineError> {
        let mut count = 0;
        let mut kept = Encoding::default();
        let mut rest = text;
        loop {
            let (piece, after) = if self.splits_at_words { split_piece(rest) } else { (rest, "") };
            let mut encoding = self.inner.encode_fast(piece, false).map_err(failed)?;
            count += encoding.len();
            match direction {
                TruncationDirection::Right if kept.len() >= room => {}
                TruncationDirection::Right => {
                    cut(&mut encoding, room, direction);
                    kept.merge_with(encoding, false);
                }
                TruncationDirection::Left => {
                    cut(&mut encoding, room, direction);
                    kept.merge_with(encoding, false);
                    cut(&mut kept, room, direction);
                }
            }
            if after.is_empty() {
                return Ok((count, kept));
            }
            rest = after;
        }
    }
}

fn failed(error: tokenizers::Error) -> EngineError {
    EngineError::Tokenizer(error.to_string())
}

/// Cuts an encoding to `room` tokens and forgets what was cut off.
fn cut(encoding: &mut Encoding, room: usize, direction: TruncationDirection) {
    if encoding.len() > room {
        let direction = match direction {
            TruncationDirection::Right => tokenizers::TruncationDirection::Right,
            TruncationDirection::Left => tokenizers::TruncationDirection::Left,
        };
        encoding.truncate(room, 0, direction);
        encoding.take_overflowing();
    }
}

/// The first piece of a text and the rest. The piece ends before a character that BERT's pre-tokenizer always begins a
/// new word with: white space, or a punctuation mark or ideograph that is a word by itself and begins no special token
/// but `[`, with which one may begin. Where there is none, the piece goes on until there is.
fn split_piece(text: &str) -> (&str, &str) {
    if text.len() <= PIECE_BYTES {
        return (text, "");
    }
    let from = (PIECE_BYTES..).find(|&at| text.is_char_boundary(at)).expect("the end of a text is a boundary");
    match text[from..].find(begins_a_word) {
        Some(at) => text.split_at(from + at),
        None => (text, ""),
    }
}

fn begins_a_word(character: char) -> bool {
    matches!(character,
        ' ' | '\n' | '\t' | '\r' | '!'..='.' | ':'..='@' | '[' | '{'..='~' | '\u{2010}'..='\u{2027}'
        | '\u{3000}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{4e00}'..='\u{9fff}' | '\u{ff01}'..='\u{ff03}')
}

impl Tokenizer for ModelTokenizer {
    fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, EngineError> {
        match texts {
            [text] => Ok(vec![self.tokenize_one(text, prompt, truncation)?]),
            _ => texts.par_iter().map(|text| self.tokenize_one(text, prompt, truncation)).collect(),
        }
    }

    fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, EngineError> {
        let whole = format!("{prompt}{text}");
        let encoding = self.inner.encode_char_offsets(whole.as_str(), add_special_tokens).map_err(failed)?;
        let byte_at: Vec<usize> =
            whole.char_indices().map(|(byte, _)| byte).chain(std::iter::once(whole.len())).collect();
        let token = |index: usize| {
            let (id, name) = (encoding.get_ids()[index], &encoding.get_tokens()[index]);
            if encoding.get_special_tokens_mask()[index] == 1 {
                return Token { id, text: name.clone(), special: true, start: None, stop: None };
            }
            let (start, stop) = encoding.get_offsets()[index];
            let text = match (byte_at.get(start), byte_at.get(stop)) {
                (Some(&from), Some(&to)) => whole[from..to].to_owned(),
                _ => name.clone(),
            };
            Token { id, text, special: false, start: Some(start), stop: Some(stop) }
        };
        Ok((0..encoding.len()).map(token).collect())
    }

    fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}
