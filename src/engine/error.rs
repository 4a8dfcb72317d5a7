//! What can go wrong between a model's name and its vectors.

use std::path::PathBuf;
use std::time::Duration;

/// Why a model cannot be found, loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No source has the model.
    #[error("the model {name} was not found.{}\nWhat to do: {advice}", tried.iter().map(|line| format!("\n  - {line}")).collect::<String>())]
    NotFound {
        /// The name asked for.
        name: String,
        /// Each source and why it did not serve.
        tried: Vec<String>,
        /// What helps.
        advice: String,
    },
    /// A name that can neither be a manifest's, a repository's nor a folder's.
    #[error("{name:?} cannot be a model's name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A model's folder lacks a file.
    #[error("the model folder {folder} has no {file}{hint}")]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
        /// What may be there instead.
        hint: &'static str,
    },
    /// A file is not the one its manifest names.
    #[error("{path} has sha256 {found}, its manifest says {expected}: delete it and fetch the model again")]
    Digest {
        /// The file.
        path: PathBuf,
        /// The manifest's.
        expected: String,
        /// The file's.
        found: String,
    },
    /// A file is there but is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The model is of a kind that this program cannot compute.
    #[error("the model in {folder} is not supported: {what}; supported is {supported}")]
    Unsupported {
        /// The model's folder.
        folder: PathBuf,
        /// What it is or has.
        what: String,
        /// What would do.
        supported: &'static str,
    },
    /// The threads that compute cannot be had.
    #[error("the engine's threads cannot be started: {0}")]
    Threads(String),
    /// The precision asked for is not what its name promises, for this model.
    #[error(
        "16-bit arithmetic does not keep to cosine {least} with f32 for this model (measured: {cosine:.6}): choose precision auto or f32"
    )]
    Precision {
        /// The lowest that was measured.
        cosine: f64,
        /// What is promised.
        least: f64,
    },
    /// An endpoint failed, or what is needed to ask it is missing.
    #[error("the upstream of {model} failed: {message}")]
    Upstream {
        /// The model behind it.
        model: String,
        /// What happened, and what to do.
        message: String,
    },
    /// Nothing can be computed now, but later.
    #[error("the upstream of {model} is busy: {message}; try again in {} s", retry_after.as_secs_f64().ceil())]
    Busy {
        /// The model behind it.
        model: String,
        /// Why.
        message: String,
        /// When.
        retry_after: Duration,
    },
    /// The text itself is refused.
    #[error("the upstream of {model} refuses the text: {message}")]
    Input {
        /// The model behind it.
        model: String,
        /// Why.
        message: String,
    },
    /// The tokenizer is somebody else's.
    #[error(
        "the tokenizer of {model} is not known here: the model runs behind an upstream, which alone can tokenise for it"
    )]
    TokenizerUnknown {
        /// The model.
        model: String,
    },
    /// A model's weights are larger than all loaded models together may be.
    #[error(
        "the weights of {name} are {bytes} bytes, models_memory_bytes_max allows {bytes_max}: raise it, or serve a smaller model"
    )]
    TooLarge {
        /// The model.
        name: String,
        /// Its weights.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The device asked for cannot be used.
    #[error("{device} cannot be used: {reason}")]
    Device {
        /// What was asked for.
        device: &'static str,
        /// Why not.
        reason: String,
    },
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The computation failed.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}
