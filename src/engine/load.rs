//! From a model's files to a [`Model`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{Config, PositionEmbeddingType};
use gemm as _; // Its feature `x86-v4` gives candle's f32 multiplication AVX-512 where the processor has it.
use sha2::{Digest, Sha256};

use super::bert::{self, Bert};
use super::manifest::{Manifest, ModelFile};
use super::source::{Located, Sources, locate};
use super::tokenizer::ModelTokenizer;
use super::{EngineError, Model};
use crate::domain::{self, FingerprintBuilder, ModelCard};

/// The class of vectors within cosine 0.9999 of f32 arithmetic.
const PRECISION: &str = "f32";

/// Finds a model, checks its files and loads it.
///
/// # Errors
/// When it is not found, a file is not what its manifest says, or the model is of a kind that is not supported.
pub fn open(name: &str, sources: &Sources) -> Result<Model, EngineError> {
    load(&locate(name, sources)?)
}

/// Loads a model that has been found.
fn load(located: &Located) -> Result<Model, EngineError> {
    let Located { folder, manifest, .. } = located;
    let config_file = read(folder, manifest, "config.json")?;
    let config = parse_config(&config_file, folder, manifest)?;
    let tokenizer_file = read(folder, manifest, "tokenizer.json")?;
    let tokenizer = ModelTokenizer::from_bytes(&tokenizer_file.bytes, &tokenizer_file.path)?;
    let weights = read(folder, manifest, "model.safetensors")?;

    let version = FingerprintBuilder::new()
        .field("weights", &weights.sha256)
        .field("tokenizer", &tokenizer_file.sha256)
        .field("config", &config_file.sha256)
        .field("pooling", manifest.pooling.to_string().as_bytes())
        .field("max tokens", &(manifest.max_tokens as u64).to_le_bytes())
        .field("precision", PRECISION.as_bytes())
        .field("numerics", bert::NUMERICS_VERSION.as_bytes())
        .finish();

    let invalid =
        |error: candle_core::Error| EngineError::Invalid { path: weights.path.clone(), reason: error.to_string() };
    let vb = VarBuilder::from_buffered_safetensors(weights.bytes, DType::F32, &Device::Cpu).map_err(invalid)?;
    // Some checkpoints hold the encoder inside a larger network.
    let candidates = [vb.clone(), vb.pp("bert")];
    let named = candidates.iter().find(|vb| vb.contains_tensor("embeddings.word_embeddings.weight"));
    let named = named.ok_or_else(|| unsupported(folder, "its tensors are not named as BERT's".to_owned()))?;
    let engine = Bert::load(&config, manifest.pooling, named).map_err(invalid)?;
    let card = ModelCard {
        name: manifest.name.clone(),
        source: manifest.source.clone(),
        version,
        dims: manifest.dims,
        max_tokens: manifest.max_tokens,
        pooling: manifest.pooling,
        normalize: manifest.normalize,
        prompts: manifest.prompts.clone(),
        default_prompt: manifest.default_prompt.clone(),
        matryoshka_dims: manifest.matryoshka_dims.clone(),
        precision: PRECISION.to_owned(),
        device: domain::Device::Cpu,
        licence: manifest.licence.clone(),
    };
    Ok(Model { card, tokenizer: Arc::new(tokenizer), engine: Box::new(engine) })
}

/// Checks every file of a model against its manifest.
///
/// # Errors
/// When a file cannot be read, or is not the one its manifest names.
pub fn verify(located: &Located) -> Result<Vec<(ModelFile, u64)>, EngineError> {
    let files = located.manifest.files.iter();
    files
        .map(|file| {
            let read = read(&located.folder, &located.manifest, &file.path)?;
            let sha256 = Some(hex(&read.sha256));
            Ok((ModelFile { sha256, ..file.clone() }, read.bytes.len() as u64))
        })
        .collect()
}

fn unsupported(folder: &Path, what: String) -> EngineError {
    EngineError::Unsupported { folder: folder.to_owned(), what, supported: "BERT (model_type bert), in safetensors" }
}

fn parse_config(file: &ReadFile, folder: &Path, manifest: &Manifest) -> Result<Config, EngineError> {
    let invalid = |reason: String| EngineError::Invalid { path: file.path.clone(), reason };
    let value: serde_json::Value = serde_json::from_slice(&file.bytes).map_err(|error| invalid(error.to_string()))?;
    match value["model_type"].as_str() {
        None | Some("bert") => {}
        Some(other) => return Err(unsupported(folder, format!("its model_type is {other}"))),
    }
    let config: Config = serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
    if config.position_embedding_type != PositionEmbeddingType::Absolute {
        return Err(unsupported(folder, "its positions are not absolute".to_owned()));
    }
    if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(invalid(format!(
            "hidden_size {} cannot be split over {} heads",
            config.hidden_size, config.num_attention_heads
        )));
    }
    if config.hidden_size != manifest.dims {
        return Err(invalid(format!(
            "hidden_size is {}, the manifest says {} dims",
            config.hidden_size, manifest.dims
        )));
    }
    if config.max_position_embeddings < manifest.max_tokens {
        return Err(invalid(format!(
            "the network reads {} tokens, the manifest says {}",
            config.max_position_embeddings, manifest.max_tokens
        )));
    }
    Ok(config)
}

struct ReadFile {
    path: PathBuf,
    bytes: Vec<u8>,
    sha256: Vec<u8>,
}

/// Reads a file whole and hashes it on the way: for the check against the manifest, and for the fingerprint.
fn read(folder: &Path, manifest: &Manifest, file: &str) -> Result<ReadFile, EngineError> {
    let path = folder.join(file);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(EngineError::Missing { folder: folder.to_owned(), file: file.to_owned(), hint: "" });
        }
        Err(source) => return Err(EngineError::File { operation: "read", path, source }),
    };
    let sha256 = Sha256::digest(&bytes).to_vec();
    let expected = manifest.files.iter().find(|listed| listed.path == file).and_then(|listed| listed.sha256.as_ref());
    match expected {
        Some(expected) if *expected != hex(&sha256) => {
            Err(EngineError::Digest { path, expected: expected.clone(), found: hex(&sha256) })
        }
        _ => Ok(ReadFile { path, bytes, sha256 }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
