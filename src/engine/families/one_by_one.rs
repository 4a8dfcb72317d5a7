//! Networks that are not BERT-shaped: one text at a time, texts side by side on threads of its own.
//!
//! Nothing is padded and no text meets another, so a text's vector is the same to the bit in every batch.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::super::pooling::pool;
use super::super::threads::Threads;
use super::super::{Engine, EngineError, check_not_empty};
use crate::domain::Pooling;

/// Changed when the arithmetic of any of these networks changes by more than the last bits: a part of their fingerprints.
pub(in super::super) const NUMERICS_VERSION: &str = "families-f32-1";

/// What computes the vectors of a text's tokens.
pub(in super::super) trait Network: Send + Sync {
    /// From ids to `[tokens, size]`.
    fn forward(&self, ids: &[u32]) -> Result<Tensor>;
}

/// A network as an engine.
pub(in super::super) struct OneByOne {
    pub(in super::super) network: Box<dyn Network>,
    pub(in super::super) pooling: Pooling,
    pub(in super::super) threads: Threads,
}

impl Engine for OneByOne {
    fn kernel(&self) -> String {
        "f32 candle".to_owned()
    }

    fn embed(&mut self, batch: &[&[u32]]) -> std::result::Result<Vec<Vec<f32>>, EngineError> {
        check_not_empty(batch)?;
        let vector = |ids: &&[u32]| {
            let tokens = self.network.forward(ids)?;
            let size = tokens.dim(1)?;
            Ok(pool(&tokens.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?, size, self.pooling))
        };
        // One text's multiplications are spread over them, too.
        self.threads.run(|| match batch {
            [one] => Ok(vec![vector(one)?]),
            many => many.par_iter().map(vector).collect(),
        })
    }
}
