//! A model without weights, for tests and load experiments: the same ids always give the same vector, in no time.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{Engine, EngineError, Model, Token, Tokenizer};
use crate::domain::{
    ActiveDevice, Device, FingerprintBuilder, ModelCard, Pooling, Tokens, Truncation, TruncationDirection,
};

/// Ids of the first and last token of every text.
const FIRST: u32 = 1;
const LAST: u32 = 2;
/// Ids of words start here.
const WORDS: u32 = 3;
const VOCABULARY: u32 = 30_000;

/// Vectors drawn from a generator that the ids seed.
#[derive(Clone, Debug)]
pub struct FakeEngine {
    /// Length of a vector.
    pub dims: usize,
}

impl Engine for FakeEngine {
    fn kernel(&self) -> String {
        "fake".to_owned()
    }

    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let vector = |ids: &&[u32]| {
            let mut state = xxh3_64(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()) | 1;
            let mut draw = || {
                // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            (0..self.dims).map(|_| draw()).collect()
        };
        Ok(batch.iter().map(vector).collect())
    }
}

/// Words between white space, in lower case, are tokens; so other spellings can have the same ids.
#[derive(Clone, Debug)]
pub struct FakeTokenizer;

impl FakeTokenizer {
    fn word(word: &str) -> u32 {
        WORDS + (xxh3_64(word.to_lowercase().as_bytes()) % u64::from(VOCABULARY - WORDS)) as u32
    }
}

impl Tokenizer for FakeTokenizer {
    fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, EngineError> {
        let tokens = |text: &&str| {
            let words: Vec<u32> = prompt.split_whitespace().chain(text.split_whitespace()).map(Self::word).collect();
            let kept = words.len().min(truncation.max_tokens.saturating_sub(2));
            let words_kept = match truncation.direction {
                TruncationDirection::Right => &words[..kept],
                TruncationDirection::Left => &words[words.len() - kept..],
            };
            let ids = [&[FIRST], words_kept, &[LAST]].concat().into();
            Tokens { ids, count_before_truncation: words.len() + 2 }
        };
        Ok(texts.iter().map(tokens).collect())
    }

    fn inspect(&self, text: &str, prompt: &str, add_special_tokens: bool) -> Result<Vec<Token>, EngineError> {
        let special = |id, text: &str| Token { id, text: text.to_owned(), special: true, start: None, stop: None };
        let whole = format!("{prompt}{text}");
        let mut tokens = Vec::new();
        let mut word_start = None;
        for (at, character) in whole.chars().chain(std::iter::once(' ')).enumerate() {
            match (character.is_whitespace(), word_start) {
                (false, None) => word_start = Some(at),
                (true, Some(start)) => {
                    let text: String = whole.chars().skip(start).take(at - start).collect();
                    let id = Self::word(&text);
                    tokens.push(Token { id, text, special: false, start: Some(start), stop: Some(at) });
                    word_start = None;
                }
                _ => {}
            }
        }
        if add_special_tokens {
            tokens.insert(0, special(FIRST, "[FIRST]"));
            tokens.push(special(LAST, "[LAST]"));
        }
        Ok(tokens)
    }

    fn vocabulary_size(&self) -> usize {
        VOCABULARY as usize
    }

    /// Words are hashed: an id has no one spelling, so it gets one, without digits.
    fn piece(&self, id: u32) -> Option<String> {
        let letter = |digit: u8| char::from(b'a' + (digit - b'0'));
        (id < VOCABULARY).then(|| id.to_string().bytes().map(letter).collect())
    }
}

/// A model of the given dims that reads at most 256 tokens and has the prompts `query` and `document`.
#[must_use]
pub fn model(dims: usize) -> Model {
    let prompts = [("query", "query: "), ("document", "document: ")];
    let card = ModelCard {
        name: "fake".to_owned(),
        source: "fake".to_owned(),
        version: FingerprintBuilder::new().field("fake", &dims.to_le_bytes()).finish(),
        dims,
        max_tokens: 256,
        truncation_direction: TruncationDirection::Right,
        pooling: Pooling::Mean,
        normalize: true,
        prompts: prompts.map(|(name, prompt)| (name.to_owned(), prompt.to_owned())).into(),
        default_prompt: None,
        matryoshka_dims: Vec::new(),
        precision: "f32".to_owned(),
        device: ActiveDevice::new(Device::Cpu, "fake"),
        licence: None,
    };
    Model { card, tokenizer: Arc::new(FakeTokenizer), engine: Box::new(FakeEngine { dims }) }
}
