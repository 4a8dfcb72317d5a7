//! From a model's files to a [`Model`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use gemm as _; // Its feature `x86-v4` gives candle's f32 multiplication AVX-512 where the processor has it.
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::families::{self, Family, Loaded, OneByOne, Refusal};
use super::manifest::{Manifest, ModelFile};
use super::source::{Located, Sources, locate};
use super::threads::Threads;
use super::tokenizer::ModelTokenizer;
use super::{
    Described, Engine, EngineError, EngineSource, Model, Options, Precision, device, encoder, precision, upstream,
};
use crate::domain::{self, ActiveDevice, FingerprintBuilder, ModelCard};

/// Finds a model, checks its files and loads it.
///
/// # Errors
/// When it is not found, a file is not what its manifest says, or the model is of a kind that is not supported.
pub fn open(name: &str, sources: &Sources, options: &Options) -> Result<Model, EngineError> {
    describe(name, sources, options)?.load()
}

/// Finds a model and checks its files, and loads everything but what computes.
///
/// # Errors
/// As [`open`], but that trouble with the weights' shapes is only found when they are loaded.
pub fn describe(name: &str, sources: &Sources, options: &Options) -> Result<Described, EngineError> {
    let located = locate(name, sources)?;
    match &located.manifest.upstream {
        Some(upstream) => {
            let folder = options.state_dir.as_ref().unwrap_or(&sources.models_dir).join("upstream");
            Ok(upstream::open(&located.manifest, upstream, &folder)?.into())
        }
        None => describe_files(&located, options),
    }
}

fn describe_files(located: &Located, options: &Options) -> Result<Described, EngineError> {
    let Located { folder, manifest, .. } = located;
    let config_file = read(folder, manifest, "config.json")?;
    let (family, config) = parse_config(&config_file, folder, manifest)?;
    device::check(options)?;
    if !family.is_encoder() && options.precision == Precision::Int8 {
        let what = "it is not BERT-shaped, and only such networks are computed in int8";
        return Err(unsupported(folder, what.to_owned()));
    }
    let tokenizer_file = read(folder, manifest, "tokenizer.json")?;
    let tokenizer = Arc::new(ModelTokenizer::from_bytes(
        &tokenizer_file.bytes,
        &tokenizer_file.path,
        Threads::to_tokenize(options)?,
    )?);
    let file = read(folder, manifest, "model.safetensors")?;

    let numerics = if family.is_encoder() { encoder::NUMERICS_VERSION } else { families::NUMERICS_VERSION };
    let version = FingerprintBuilder::new()
        .field("weights", &file.sha256)
        .field("tokenizer", &tokenizer_file.sha256)
        .field("config", &config_file.sha256)
        .field("pooling", manifest.pooling.to_string().as_bytes())
        .field("max tokens", &(manifest.max_tokens as u64).to_le_bytes())
        .field("precision", options.precision.class().as_bytes())
        .field("numerics", numerics.as_bytes())
        .finish();

    let active = ActiveDevice::new(domain::Device::Cpu, "not loaded");
    let card = ModelCard {
        name: manifest.name.clone(),
        source: manifest.source.clone(),
        version,
        dims: manifest.dims,
        max_tokens: manifest.max_tokens,
        truncation_direction: manifest.truncation_direction,
        pooling: manifest.pooling,
        normalize: manifest.normalize,
        prompts: manifest.prompts.clone(),
        default_prompt: manifest.default_prompt.clone(),
        matryoshka_dims: manifest.matryoshka_dims.clone(),
        precision: options.precision.class().to_owned(),
        device: active.clone(),
        licence: manifest.licence.clone(),
    };
    let weights_bytes = file.bytes.len() as u64;
    let building = Building {
        folder: folder.clone(),
        manifest: manifest.clone(),
        family,
        config,
        config_path: config_file.path,
        weights_path: file.path,
        weights_sha256: file.sha256,
        options: options.clone(),
        tokenizer: Arc::clone(&tokenizer),
        active,
        chosen: Arc::default(),
    };
    let weights = EngineSource::new(weights_bytes, Some(file.bytes), Box::new(move |read| building.build(read)));
    Ok(Described { card, tokenizer, weights })
}

/// What it takes to build a model's engine, any number of times.
struct Building {
    folder: PathBuf,
    manifest: Manifest,
    family: Family,
    config: Value,
    config_path: PathBuf,
    weights_path: PathBuf,
    weights_sha256: Vec<u8>,
    options: Options,
    tokenizer: Arc<ModelTokenizer>,
    active: ActiveDevice,
    /// How the processor computes it best, once that is known.
    chosen: Arc<OnceLock<precision::Choice>>,
}

impl Building {
    /// From the bytes of the weights, if they were just read, else from their file.
    fn build(&self, read_before: Option<Vec<u8>>) -> Result<Box<dyn Engine>, EngineError> {
        let Self { folder, manifest, config, weights_path, options, .. } = self;
        let bytes = match read_before {
            Some(bytes) => bytes,
            None => unchanged(read(folder, manifest, "model.safetensors")?, &self.weights_sha256)?,
        };
        let invalid =
            |error: candle_core::Error| EngineError::Invalid { path: weights_path.clone(), reason: error.to_string() };
        let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).map_err(invalid)?;
        let loaded = self.family.load(config, &vb, manifest.max_tokens);
        let loaded = loaded.map_err(|refusal| refused(refusal, folder, &self.config_path, weights_path))?;
        let (pooling, max_tokens) = (manifest.pooling, manifest.max_tokens);
        match loaded {
            Loaded::Encoder(weights) => {
                let (options, tokenizer, chosen) =
                    (options.clone(), Arc::clone(&self.tokenizer), Arc::clone(&self.chosen));
                let on_processor = move |weights: &super::weights::Weights| {
                    precision::encoder(weights, pooling, &options, &*tokenizer, max_tokens, &chosen)
                };
                device::choose(weights, pooling, &self.options, &self.active, on_processor)
            }
            Loaded::Network(network) => {
                let engine = OneByOne { network, pooling, threads: Threads::to_compute(options)? };
                self.active.set(domain::Device::Cpu, &engine.kernel());
                Ok(Box::new(engine))
            }
        }
    }
}

/// Weights read again have to be those that the fingerprint was made of.
fn unchanged(file: ReadFile, sha256: &[u8]) -> Result<Vec<u8>, EngineError> {
    if file.sha256 == sha256 {
        return Ok(file.bytes);
    }
    let reason = "it was replaced while the model was served: start again to serve the new one".to_owned();
    Err(EngineError::Invalid { path: file.path, reason })
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
    EngineError::Unsupported { folder: folder.to_owned(), what, supported: families::SUPPORTED }
}

/// What a family refuses, with the place it stands in.
pub(super) fn refused(refusal: Refusal, folder: &Path, config: &Path, weights: &Path) -> EngineError {
    match refusal {
        Refusal::Config(reason) => EngineError::Invalid { path: config.to_owned(), reason },
        Refusal::Unsupported(what) => unsupported(folder, what),
        Refusal::Weights(error) => EngineError::Invalid { path: weights.to_owned(), reason: error.to_string() },
    }
}

/// Recognises the network and holds its configuration against the manifest.
fn parse_config(file: &ReadFile, folder: &Path, manifest: &Manifest) -> Result<(Family, Value), EngineError> {
    let invalid = |reason: String| EngineError::Invalid { path: file.path.clone(), reason };
    let refused = |refusal| refused(refusal, folder, &file.path, &file.path);
    let config: Value = serde_json::from_slice(&file.bytes).map_err(|error| invalid(error.to_string()))?;
    let family = Family::of(&config).map_err(refused)?;
    let outline = family.outline(&config).map_err(refused)?;
    if outline.dims != manifest.dims {
        return Err(invalid(format!("hidden_size is {}, the manifest says {} dims", outline.dims, manifest.dims)));
    }
    if outline.places < manifest.max_tokens {
        return Err(invalid(format!(
            "the network reads {} tokens, the manifest says {}",
            outline.places, manifest.max_tokens
        )));
    }
    Ok((family, config))
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
