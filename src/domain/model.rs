//! Which model made a vector, down to the last weight.

use std::collections::BTreeMap;
use std::fmt;

use super::digest::digest;

/// A fingerprint of everything in a model that changes its vectors: weights, tokenizer, pooling, maximum length,
/// precision class, numerics version. Replace any file and it is another model, whose vectors are not mixed with the old.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelVersion([u8; 32]);

/// Digests named fields into a [`ModelVersion`]. The order in which fields are given does not matter.
#[derive(Default)]
pub struct FingerprintBuilder {
    fields: BTreeMap<String, Vec<u8>>,
}

impl FingerprintBuilder {
    /// No fields yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one field; giving a name twice keeps the last value.
    #[must_use]
    pub fn field(mut self, name: &str, value: &[u8]) -> Self {
        self.fields.insert(name.to_owned(), value.to_vec());
        self
    }

    /// BLAKE3 over every name and value, each preceded by its length.
    #[must_use]
    pub fn finish(&self) -> ModelVersion {
        let mut hasher = blake3::Hasher::new_derive_key("vecmemo 2026 model fingerprint v1");
        for (name, value) in &self.fields {
            for part in [name.as_bytes(), value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        ModelVersion(*hasher.finalize().as_bytes())
    }
}

digest!(ModelVersion);

/// How one vector is made from the vectors of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The first token's vector.
    Cls,
    /// The largest value of each dimension.
    Max,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
        })
    }
}

/// What computes the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

impl Device {
    /// The name used in headers, answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

/// The facts of a loaded model that its users need.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// The name it is served under, such as `all-MiniLM-L6-v2`.
    pub name: String,
    /// The repository it comes from, such as `sentence-transformers/all-MiniLM-L6-v2`.
    pub source: String,
    /// The fingerprint.
    pub version: ModelVersion,
    /// Length of a vector.
    pub dims: usize,
    /// The most tokens the model reads of one text, special tokens included.
    pub max_tokens: usize,
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Whether vectors are scaled to length one when the request does not say.
    pub normalize: bool,
    /// Texts put before the input, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt used when the request names none.
    pub default_prompt: Option<String>,
    /// Shorter lengths the model was trained to be cut to (Matryoshka); empty if it was not.
    pub matryoshka_dims: Vec<usize>,
    /// The precision class of the vectors, `f32` for everything within cosine 0.9999 of it.
    pub precision: String,
    /// What computes them.
    pub device: Device,
    /// The SPDX licence of the weights.
    pub licence: Option<String>,
}
