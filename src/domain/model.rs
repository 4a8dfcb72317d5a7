//! Which model made a vector, down to the last weight.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::TruncationDirection;
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
    /// The last token's vector.
    #[serde(rename = "last", alias = "lasttoken")]
    LastToken,
    /// However the upstream does it.
    Upstream,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::LastToken => "last",
            Self::Upstream => "upstream",
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
    /// Somebody else's, behind an endpoint.
    Upstream,
}

impl Device {
    const ALL: [Self; 4] = [Self::Cpu, Self::Cuda, Self::Metal, Self::Upstream];

    /// The name used in headers, answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Upstream => "upstream",
        }
    }
}

/// What computes a model's vectors now. All copies of a card share it: weights are loaded when they are needed, and a GPU
/// that is lost gives way to the processor.
#[derive(Clone, Debug)]
pub struct ActiveDevice(Arc<Active>);

#[derive(Debug)]
struct Active {
    device: AtomicU8,
    kernel: Mutex<Arc<str>>,
}

impl ActiveDevice {
    /// A device, and what computes on it, for people: the arithmetic and the instruction set, such as `i16 avx2`.
    #[must_use]
    pub fn new(device: Device, kernel: &str) -> Self {
        Self(Arc::new(Active { device: AtomicU8::new(device as u8), kernel: Mutex::new(kernel.into()) }))
    }

    /// What computes now.
    #[must_use]
    pub fn get(&self) -> Device {
        let now = self.0.device.load(Ordering::Relaxed);
        Device::ALL.into_iter().find(|&device| device as u8 == now).expect("only a device is ever stored")
    }

    /// What computes on it, for people.
    #[must_use]
    pub fn kernel(&self) -> Arc<str> {
        Arc::clone(&self.0.kernel.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that another computes from now on.
    pub fn set(&self, device: Device, kernel: &str) {
        self.0.device.store(device as u8, Ordering::Relaxed);
        *self.0.kernel.lock().unwrap_or_else(PoisonError::into_inner) = kernel.into();
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
    /// Which end of a long text is cut when the request does not say.
    pub truncation_direction: TruncationDirection,
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
    /// What computes them now.
    pub device: ActiveDevice,
    /// The SPDX licence of the weights.
    pub licence: Option<String>,
}
