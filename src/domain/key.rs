//! What a vector is found by: a hash of everything that can change it.
//!
//! The definition, version 1 (`KEY_FORMAT`). `frame(x)` is the length of `x` in bytes as a little-endian `u64`, then `x`.
//!
//! ```text
//! content = BLAKE3(text)
//! scope   = BLAKE3-derive-key("vecmemo 2026 key scope v1",
//!             frame(namespace) ‖ frame(model version) ‖ frame(prompt) ‖ direction u8 ‖ max tokens u64)
//! key     = BLAKE3-keyed(scope, content)                              a text by itself
//!         = BLAKE3-keyed(scope, content ‖ frame(chunk id))            a text whose vector depends on where it stands
//! tokens  = BLAKE3-keyed(BLAKE3-derive-key("vecmemo 2026 token scope v1",
//!             frame(namespace) ‖ frame(model version)), token ids as little-endian u32)
//! ```
//!
//! `normalize`, `dimensions` and the output format are not in the key: every shape is derived from the one stored
//! record. A scope is the same for all texts of a request, so it is hashed once; a content hash is the same under every
//! model, so a caller may keep it. Test vectors stand at the end of this file: another implementation that meets
//! them computes the same keys.

use std::fmt;
use std::str::FromStr;

use super::digest::digest;
use super::{ModelVersion, Namespace, Truncation, TruncationDirection};

const SCOPE_CONTEXT: &str = "vecmemo 2026 key scope v1";
const TOKEN_SCOPE_CONTEXT: &str = "vecmemo 2026 token scope v1";

/// BLAKE3 of a text's UTF-8 bytes: the text's identity, whatever the model.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

/// Which chunk of a larger document a text is, for models whose vector depends on the surroundings (late chunking).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChunkId(String);

/// Everything but the text that changes a vector: namespace, model version, prompt and truncation, hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope {
    texts: [u8; 32],
    tokens: [u8; 32],
}

/// A cached vector's name: 32 bytes, written in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Key([u8; 32]);

/// The name of a sequence of token ids: texts that differ only in what the tokenizer ignores share it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenKey([u8; 32]);

/// A string that is not 64 hexadecimal digits was given as a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key is 64 hexadecimal digits, not {0:?}")]
pub struct ParseKeyError(String);

impl ContentHash {
    /// Hashes a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(*blake3::hash(text.as_bytes()).as_bytes())
    }
}

impl ChunkId {
    /// Any string: a document's id and a position in it, say.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scope {
    /// The scope of texts embedded by `model` for `namespace` with `prompt` before them ("" for none).
    #[must_use]
    pub fn new(namespace: &Namespace, model: &ModelVersion, prompt: &str, truncation: Truncation) -> Self {
        let mut texts = blake3::Hasher::new_derive_key(SCOPE_CONTEXT);
        frame(&mut texts, namespace.as_str().as_bytes());
        frame(&mut texts, model.as_bytes());
        frame(&mut texts, prompt.as_bytes());
        let direction = match truncation.direction {
            TruncationDirection::Right => 0,
            TruncationDirection::Left => 1,
        };
        texts.update(&[direction]);
        texts.update(&(truncation.max_tokens as u64).to_le_bytes());

        let mut tokens = blake3::Hasher::new_derive_key(TOKEN_SCOPE_CONTEXT);
        frame(&mut tokens, namespace.as_str().as_bytes());
        frame(&mut tokens, model.as_bytes());
        Self { texts: *texts.finalize().as_bytes(), tokens: *tokens.finalize().as_bytes() }
    }

    /// A name of the scope: scopes whose texts have other keys have other names.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.texts).as_bytes()
    }

    /// The key of a text by itself.
    #[must_use]
    pub fn key(&self, content: ContentHash) -> Key {
        Key(*blake3::keyed_hash(&self.texts, &content.0).as_bytes())
    }

    /// The key of a text as one chunk of a larger document.
    #[must_use]
    pub fn chunk_key(&self, content: ContentHash, chunk: &ChunkId) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.texts);
        hasher.update(&content.0);
        frame(&mut hasher, chunk.0.as_bytes());
        Key(*hasher.finalize().as_bytes())
    }

    /// The key of token ids, as the model reads them: prompt and special tokens included, truncated.
    #[must_use]
    pub fn token_key(&self, ids: &[u32]) -> TokenKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.tokens);
        for id in ids {
            hasher.update(&id.to_le_bytes());
        }
        TokenKey(*hasher.finalize().as_bytes())
    }
}

pub(super) fn frame(hasher: &mut blake3::Hasher, field: &[u8]) {
    hasher.update(&(field.len() as u64).to_le_bytes());
    hasher.update(field);
}

impl Key {
    /// The first eight bytes as a number: uniformly distributed, ready to index a hash table.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("a key has more than eight bytes"))
    }
}

digest!(ContentHash);
digest!(Key);
digest!(TokenKey);

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Key(self.texts), f)
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(ParseKeyError(text.chars().take(80).collect()));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| (digit as char).to_digit(16);
            match (value(pair[0]), value(pair[1])) {
                (Some(high), Some(low)) => *byte = (high * 16 + low) as u8,
                _ => return Err(ParseKeyError(text.chars().take(80).collect())),
            }
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FingerprintBuilder;

    /// Content hash, key, chunk's key and token key.
    const VECTORS: [&str; 4] = [
        "4e406513432b4da52ae947c084ea5cf33ef02406f837159d04eed2e86688e376",
        "7bafc6f19e98272eacd794fd426fee2bc02d8741dec988b0e414a25e8026d7af",
        "1860841c6311450110a734131b83cc409aac44342c17ab82ca86b5231f7edbb3",
        "1fa4e4d3709ec17d9a01572948a90fb4b8bc01474f4661461d50e0eaed050b16",
    ];

    fn scope(namespace: &str, model: &str, prompt: &str, truncation: Truncation) -> Scope {
        let version = FingerprintBuilder::new().field("weights", model.as_bytes()).finish();
        Scope::new(&Namespace::new(namespace).unwrap(), &version, prompt, truncation)
    }

    fn right(max_tokens: usize) -> Truncation {
        Truncation { direction: TruncationDirection::Right, max_tokens }
    }

    #[test]
    fn everything_that_changes_the_vector_changes_the_key() {
        let left = Truncation { direction: TruncationDirection::Left, max_tokens: 256 };
        let scopes = [
            scope("", "a", "", right(256)),
            scope("x", "a", "", right(256)),
            scope("", "b", "", right(256)),
            scope("", "a", "query: ", right(256)),
            scope("", "a", "", right(255)),
            scope("", "a", "", left),
        ];
        let mut keys: Vec<Key> = scopes.iter().map(|scope| scope.key(ContentHash::of("text"))).collect();
        keys.push(scopes[0].key(ContentHash::of("text ")));
        keys.push(scopes[0].chunk_key(ContentHash::of("text"), &ChunkId::new("")));
        keys.push(scopes[0].chunk_key(ContentHash::of("text"), &ChunkId::new("1")));
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let one = scope("a-b", "m", "c", right(1)).key(ContentHash::of("t"));
        let other = scope("a", "m", "-bc", right(1)).key(ContentHash::of("t"));
        assert_ne!(one, other);
    }

    /// The definition at the head of this file, by an implementation that knows nothing of this one: Python's `blake3`
    /// package (`scripts/make-key-vectors` prints these).
    #[test]
    fn keys_are_those_of_the_public_definition() {
        let model = ModelVersion::from_bytes([7; 32]);
        let namespace = Namespace::new("tenant-1").unwrap();
        let truncation = Truncation { direction: TruncationDirection::Left, max_tokens: 256 };
        let scope = Scope::new(&namespace, &model, "query: ", truncation);
        let content = ContentHash::of("héllo");
        let chunk = ChunkId::new("doc-1#3");
        assert_eq!(
            [
                content.to_string(),
                scope.key(content).to_string(),
                scope.chunk_key(content, &chunk).to_string(),
                scope.token_key(&[101, 7592, 102]).to_string(),
            ],
            VECTORS
        );
    }

    #[test]
    fn hex_reads_back_and_junk_is_refused() {
        let key = scope("", "m", "", right(1)).key(ContentHash::of("t"));
        assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        for junk in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(junk.parse::<Key>().is_err(), "{junk}");
        }
    }
}
