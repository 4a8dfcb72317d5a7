//! vecmemo: an embedding cache. Texts in, vectors out, each text computed once.
//!
//! As a program it is a service (`vecmemo serve`); as a library it is a [`cache::Cache`], put together from a
//! [`store::Store`] and a [`batch::Embedder`] around an [`engine::Model`]. `examples/embed.rs` does it in twenty lines.
//! `src/ARCHITECTURE.md` is the map.

pub mod access;
pub mod batch;
pub mod cache;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod http;
pub mod index;
pub mod remote;
pub mod reuse;
pub mod store;
pub mod urgency;
