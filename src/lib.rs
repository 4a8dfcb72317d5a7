//! vecmemo: an embedding cache. Texts in, vectors out, each text computed once.

pub mod batch;
pub mod cache;
pub mod domain;
pub mod engine;
pub mod http;
pub mod store;
