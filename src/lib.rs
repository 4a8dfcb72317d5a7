//! vecmemo: an embedding cache. Texts in, vectors out, each text computed once.

pub mod domain;
pub mod store;
