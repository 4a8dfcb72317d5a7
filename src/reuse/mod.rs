//! Reuse: when a cached text's vector may answer for another, nearly equal text.
//!
//! ```text
//! misses, as computed ─► calibrate ─► lexicon, map, gates ─► certificates
//!                                                               │
//! a text's ids ─► cheap vector (table, map) ─► nearest text ─► vetoes ─► gate ─► its vector will do, or not
//!                                                               │
//!                                  some are computed all the same ─► audit ─► switched off
//! ```
//!
//! Finding a near-duplicate is easy; knowing whether its vector will do is not. So nothing is promised that was not shown on the
//! same namespace's own traffic: a gate, trained on half of it, is tested on the other half, and what passes at the stated
//! confidence is a certificate: of texts so long, at most such a share of the reused vectors is less similar to the text's own
//! than such a floor.
//!
//! Pure: reads no file, knows no store, computes no embedding. Only computed texts are ever a source.

mod audit;
mod calibrate;
mod certificate;
mod certify;
mod changes;
#[cfg(test)]
mod draws;
mod features;
mod gate;
mod lexicon;
mod map;
mod matcher;
mod neighbours;
mod table;
mod veto;

pub use audit::Audit;
pub use calibrate::{CalibrateError, Calibration, Miss, Options, PAIRS_MIN, calibrate};
pub use certificate::{BINS, CONFIDENCE, Certificate, CertificateId, GOALS, TOKENS_MIN, bin};
pub use matcher::{Match, Matcher, Refusal};
pub use neighbours::{Neighbour, Neighbours};
pub use table::{TABLE_DIMS_MAX, Table, TableError};
pub use veto::Veto;

/// What a caller allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The floor of the cosine between a reused vector and the text's own, 0 to 1.
    pub min_similarity: f32,
    /// The share of reused vectors that may be below the floor, 0 to 1.
    pub max_violation: f32,
}

impl Terms {
    /// The share of violations that is allowed where a caller names none.
    pub const MAX_VIOLATION: f32 = 0.05;
}
