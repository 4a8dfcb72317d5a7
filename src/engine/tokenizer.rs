//! The tokenizer of a model's `tokenizer.json`.
//!
//! Padding and truncation written into the file are switched off: nothing is padded, and cutting is done here, so that the
//! length before it is known. A long text is tokenised piece by piece where that provably gives the same ids, so that
//! memory is bounded by the piece and not by the text; a piece too long for that is refused.

use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::Encoding;

use super::threads::Threads;
use super::{EngineError, Token, Tokenizer};
use crate::domain::{Tokens, Truncation, TruncationDirection};

/// Longer texts are tokenised in pieces of about this size, each ending where a word certainly ends.
const PIECE_BYTES: usize = 64 << 10;

/// The longest piece without a place to cut, under a tokenizer that may make a token of each of its bytes: about 130 times as
/// much memory is needed for it.
const UNCUT_BYTES_MAX: usize = 4 << 20;

pub(super) struct ModelTokenizer {
    inner: tokenizers::Tokenizer,
    /// How many special tokens the model's template adds.
    special_count: usize,
    /// Where a long text may be cut.
    cuts: Cuts,
    /// About how long its pieces are.
    piece_bytes: usize,
    /// What several texts are tokenised on.
    threads: Threads,
}

/// Where a text may be cut so that its pieces have the ids that the whole has. [`Cuts::of`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cuts {
    /// Nowhere for certain.
    Nowhere,
    /// Before every character that BERT's pre-tokenizer begins a word with.
    BeforeWords,
    /// Before a space between two letters or digits.
    AtSpaces,
    /// The same, and before a line break or a mark between two.
    AtSpacesAndMarks,
}

impl Cuts {
    /// What a tokenizer's parts allow. A cut is right where, in the whole text, a word ends and the next begins whatever stands
    /// around them, no added token reaches across, and neither the normaliser nor the pre-tokenizer treats the beginning of a
    /// text in a way that would change the second piece.
    ///
    /// Between two letters (or digits) a space always begins a word: for BERT's pre-tokenizer and for SentencePiece's (Metaspace)
    /// by definition, for the byte-level ones because no alternative of their expressions goes on from a letter to a space,
    /// and the match that begins at the space depends on what follows only. The same holds for marks and line breaks under the
    /// byte-level ones, unless they put a space before a text. Added tokens are ASCII here, begin and end with another character
    /// than a letter, and have no space inside with letters around it: what they take in besides (`lstrip`, `rstrip`) is white
    /// space next to them.
    fn of(inner: &tokenizers::Tokenizer) -> Self {
        let part = |part: serde_json::Result<Value>| part.unwrap_or(Value::Bool(false));
        let pre_tokenizer = part(serde_json::to_value(inner.get_pre_tokenizer()));
        let normalizer = part(serde_json::to_value(inner.get_normalizer()));
        let added: Vec<String> = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let bracketed = |content: &String| content.starts_with('[') && !content[1..].contains(begins_a_word);
        if pre_tokenizer["type"] == "BertPreTokenizer" && added.iter().all(bracketed) {
            return Self::BeforeWords;
        }
        let apart = |content: &String| {
            let characters: Vec<char> = content.chars().collect();
            let outer = [characters.first(), characters.last()];
            content.is_ascii()
                && outer.into_iter().flatten().all(|&end| !is_letter(end))
                && !characters.windows(3).any(|three| is_letter(three[0]) && three[1] == ' ' && is_letter(three[2]))
        };
        if !added.iter().all(apart) || !normalizes_letters_apart(&normalizer) {
            return Self::Nowhere;
        }
        let composed = normalizer.is_null() || normalizer["type"] == "NFC";
        match pre_tokenizer["type"].as_str() {
            Some("BertPreTokenizer") => Self::AtSpaces,
            Some("Metaspace") if pre_tokenizer["split"] == true => Self::AtSpaces,
            Some("ByteLevel") if pre_tokenizer["use_regex"] == true => {
                if composed && pre_tokenizer["add_prefix_space"] == false {
                    Self::AtSpacesAndMarks
                } else {
                    Self::AtSpaces
                }
            }
            Some("Sequence") => match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
                Some([words, metaspace]) if words["type"] == "WhitespaceSplit" && metaspace["type"] == "Metaspace" => {
                    Self::AtSpaces
                }
                Some([split, bytes])
                    if split["type"] == "Split"
                        && split["pattern"]["Regex"] == QWEN_WORDS
                        && split["behavior"] == "Isolated"
                        && split["invert"] == false
                        && bytes["type"] == "ByteLevel"
                        && bytes["add_prefix_space"] == false
                        && bytes["use_regex"] == false =>
                {
                    if composed {
                        Self::AtSpacesAndMarks
                    } else {
                        Self::AtSpaces
                    }
                }
                _ => Self::Nowhere,
            },
            _ => Self::Nowhere,
        }
    }

    /// Whether a text may be cut before `here`, which stands between `before` and `after`.
    fn allow(self, before: char, here: char, after: Option<char>) -> bool {
        let between = || is_letter(before) && after.is_some_and(is_letter);
        match self {
            Self::Nowhere => false,
            Self::BeforeWords => begins_a_word(here),
            Self::AtSpaces => here == ' ' && between(),
            Self::AtSpacesAndMarks => {
                matches!(here, ' ' | '\n' | ',' | '.' | ';' | ':' | '，' | '。' | '、') && between()
            }
        }
    }

    /// The first piece of a text, of `bytes` or somewhat more, and the rest. Where no cut is right, the piece goes on until
    /// one is.
    fn split(self, text: &str, bytes: usize) -> (&str, &str) {
        if text.len() <= bytes || self == Self::Nowhere {
            return (text, "");
        }
        let from = (bytes..).find(|&at| text.is_char_boundary(at)).expect("the end of a text is a boundary");
        let Some(mut before) = text[..from].chars().next_back() else { return (text, "") };
        let mut rest = text[from..].char_indices().peekable();
        while let Some((at, here)) = rest.next() {
            if self.allow(before, here, rest.peek().map(|&(_, after)| after)) {
                return text.split_at(from + at);
            }
            before = here;
        }
        (text, "")
    }
}

/// How Qwen's tokenizers split a text into words.
const QWEN_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether a normaliser works on characters, or on runs of marks and white space, so that a single space between two letters
/// keeps what is before it and what is after it apart.
fn normalizes_letters_apart(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some(
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Precompiled" | "BertNormalizer" | "Lowercase" | "StripAccents" | "Nmt",
        ) => true,
        Some("Replace") => normalizer["pattern"]["Regex"] == " {2,}",
        Some("Sequence") => {
            normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(normalizes_letters_apart))
        }
        Some(_) => false,
    }
}

/// Letters and digits that no version of Unicode and no normal form has as anything else.
fn is_letter(character: char) -> bool {
    matches!(character,
        '0'..='9' | 'A'..='Z' | 'a'..='z' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{24f}'
        | '\u{391}'..='\u{3a1}' | '\u{3a3}'..='\u{3c9}' | '\u{400}'..='\u{481}' | '\u{621}'..='\u{63a}' | '\u{641}'..='\u{64a}'
        | '\u{904}'..='\u{939}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fa5}'
        | '\u{ac00}'..='\u{d7a3}')
}

impl ModelTokenizer {
    pub(super) fn from_bytes(bytes: &[u8], path: &Path, threads: Threads) -> Result<Self, EngineError> {
        let invalid =
            |error: tokenizers::Error| EngineError::Invalid { path: path.to_owned(), reason: error.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(invalid)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(invalid)?;
        let special_count = inner.encode_fast("", true).map_err(invalid)?.len();
        let cuts = Cuts::of(&inner);
        Ok(Self { inner, special_count, cuts, piece_bytes: PIECE_BYTES, threads })
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
            let (piece, after) = self.cuts.split(rest, self.piece_bytes);
            if piece.len() > UNCUT_BYTES_MAX && self.cuts != Cuts::BeforeWords {
                return Err(EngineError::Tokenizer(format!(
                    "{} bytes stand together without a space between two letters, and at most {UNCUT_BYTES_MAX} can be read so; \
                     split the text",
                    piece.len()
                )));
            }
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

/// What BERT's pre-tokenizer always begins a new word with: white space, or a punctuation mark or ideograph that is a word by
/// itself and begins no special token but `[`, with which one may begin.
fn begins_a_word(character: char) -> bool {
    matches!(character,
        ' ' | '\n' | '\t' | '\r' | '!'..='.' | ':'..='@' | '[' | '{'..='~' | '\u{2010}'..='\u{2027}'
        | '\u{3000}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{4e00}'..='\u{9fff}' | '\u{ff01}'..='\u{ff03}')
}

impl Tokenizer for ModelTokenizer {
    fn tokenize(&self, texts: &[&str], prompt: &str, truncation: Truncation) -> Result<Vec<Tokens>, EngineError> {
        match texts {
            [text] => Ok(vec![self.tokenize_one(text, prompt, truncation)?]),
            _ => {
                self.threads.run(|| texts.par_iter().map(|text| self.tokenize_one(text, prompt, truncation)).collect())
            }
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

    fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    fn changed(family: &str, change: impl Fn(&mut Value)) -> ModelTokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(family);
        let path = folder.join("tokenizer.json");
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut file);
        let threads = Threads::to_tokenize(&Options::default()).unwrap();
        ModelTokenizer::from_bytes(&serde_json::to_vec(&file).unwrap(), &path, threads).unwrap()
    }

    fn of(family: &str) -> ModelTokenizer {
        changed(family, |_| {})
    }

    #[test]
    fn tokenizers_are_cut_only_where_their_parts_allow_it() {
        assert_eq!(of("tiny-mean").cuts, Cuts::BeforeWords);
        assert_eq!(of("family-xlm-roberta").cuts, Cuts::AtSpaces);
        assert_eq!(of("family-roberta").cuts, Cuts::AtSpacesAndMarks);
        assert_eq!(of("family-modernbert").cuts, Cuts::AtSpacesAndMarks);
        assert_eq!(of("family-qwen3").cuts, Cuts::AtSpacesAndMarks);
        // Its `<mask>` has a `>` inside, before which BERT's words may end.
        assert_eq!(of("family-mpnet").cuts, Cuts::AtSpaces);
        let prefixed = changed("family-roberta", |file| file["pre_tokenizer"]["add_prefix_space"] = true.into());
        assert_eq!(prefixed.cuts, Cuts::AtSpaces);
        let whole = changed("family-xlm-roberta", |file| file["pre_tokenizer"]["split"] = false.into());
        assert_eq!(whole.cuts, Cuts::Nowhere);
        let stripped = changed("family-roberta", |file| {
            file["normalizer"] = serde_json::json!({"type": "Strip", "strip_left": true, "strip_right": true});
        });
        assert_eq!(stripped.cuts, Cuts::Nowhere);
        let named = changed("family-roberta", |file| file["added_tokens"][0]["content"] = "begin".into());
        assert_eq!(named.cuts, Cuts::Nowhere);
    }

    #[test]
    fn memory_is_bounded_by_refusing_megabytes_without_a_place_to_cut() {
        let tokenizer = of("family-xlm-roberta");
        let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 96 };
        let tokenize = |text: String| tokenizer.tokenize_one(&text, "", truncation);
        let error = tokenize("a".repeat(UNCUT_BYTES_MAX + 1)).unwrap_err().to_string();
        assert!(error.contains("4194305 bytes stand together"), "{error}");
        assert_eq!(tokenize("a b ".repeat(UNCUT_BYTES_MAX / 40)).unwrap().ids.len(), 96);
    }

    /// Letters, digits, marks, all kinds of white space, marks that compose, special tokens whole and broken.
    fn texts() -> impl Strategy<Value = String> {
        let pieces = [
            "a",
            "be",
            " ",
            " ",
            " ",
            " ",
            " ",
            " ",
            " ",
            "The",
            "don't",
            "'s",
            " 's",
            "x1",
            "7",
            "42",
            " ",
            " ",
            " ",
            "  ",
            "   ",
            "\n",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            ".",
            ",",
            "...",
            "!",
            "-",
            "é",
            "e\u{301}",
            "\u{301}",
            "й",
            "и\u{306}",
            "дом",
            "中文",
            "，",
            "。",
            "、",
            "한국",
            "ᄒ",
            "ß",
            "ﬁ",
            "ａ",
            "ﷺ",
            "\u{37a}",
            "🙂",
            "👩\u{200d}🔬",
            "<s>",
            "</s>",
            "<mask>",
            " <mask> ",
            "<ma",
            "sk>",
            "[MASK]",
            "[",
            "]",
            "<|endoftext|>",
            "<|im_end|>",
            "▁",
            "\u{ad}",
            "\u{0}",
            "कि",
            "ा",
            "ال",
            "\u{64b}",
            "ς",
            "Σ",
        ];
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..60).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn a_text_in_pieces_has_the_ids_of_the_whole() {
        let split_first = |file: &mut Value| {
            let metaspace = file["pre_tokenizer"].clone();
            let both = [serde_json::json!({"type": "WhitespaceSplit"}), metaspace];
            file["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": both});
        };
        let by_scheme =
            |scheme: &'static str| move |file: &mut Value| file["pre_tokenizer"]["prepend_scheme"] = scheme.into();
        let tokenizers = std::cell::RefCell::new([
            of("tiny-mean"),
            of("family-xlm-roberta"),
            of("family-roberta"),
            of("family-modernbert"),
            of("family-qwen3"),
            of("family-mpnet"),
            changed("family-roberta", |file| file["pre_tokenizer"]["add_prefix_space"] = true.into()),
            changed("family-xlm-roberta", split_first),
            changed("family-xlm-roberta", by_scheme("first")),
            changed("family-xlm-roberta", by_scheme("never")),
        ]);
        let cuts = std::cell::Cell::new(0);
        let mut runner = TestRunner::new(ProptestConfig { cases: 1000, ..ProptestConfig::default() });
        let outcome = runner.run(&(texts(), 1usize..24), |(text, piece_bytes)| {
            for tokenizer in tokenizers.borrow_mut().iter_mut() {
                tokenizer.piece_bytes = piece_bytes;
                cuts.set(cuts.get() + usize::from(!tokenizer.cuts.split(&text, piece_bytes).1.is_empty()));
                let whole = tokenizer.inner.encode_fast(text.as_str(), true).unwrap();
                let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: usize::MAX };
                let tokens = tokenizer.tokenize_one(&text, "", truncation).unwrap();
                prop_assert_eq!(&*tokens.ids, whole.get_ids());
                prop_assert_eq!(tokens.count_before_truncation, whole.len());
            }
            Ok(())
        });
        outcome.unwrap();
        assert!(cuts.get() > 2000, "only {} texts were cut", cuts.get());
    }
}
