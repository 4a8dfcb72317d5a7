//! What can go wrong between a model's name and its vectors.

use std::path::PathBuf;

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
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The computation failed.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}
