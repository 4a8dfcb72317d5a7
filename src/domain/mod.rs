//! The words the rest of the program speaks in: keys, model versions, namespaces, embeddings, provenance.
//!
//! No I/O, no async, no state: every function here is a pure function of its arguments.

mod digest;
mod embedding;
mod key;
mod lane;
mod model;
mod namespace;
mod pattern;
mod provenance;
mod tokens;
mod veil;

pub use embedding::{Embedding, UnusableVector, scaled_to_one};
pub use key::{ChunkId, ContentHash, Key, ParseKeyError, Scope, TokenKey};
pub use lane::{Lane, UnknownLane};
pub use model::{ActiveDevice, Device, FingerprintBuilder, ModelCard, ModelVersion, Pooling};
pub use namespace::{Namespace, NamespaceError, Reach, Tenant, owner};
pub use pattern::Pattern;
pub use provenance::Status;
pub use tokens::{Tokens, Truncation, TruncationDirection};
pub use veil::veil;
