//! The BERT encoder on packed tokens.
//!
//! Nothing is padded: all tokens of a batch are the rows of one matrix, so every linear layer is one multiplication.
//! Attention alone looks at texts: those of one length together, as one batch of small matrices; the caller's sorting by
//! length makes such groups common. The three projections of attention are one matrix, with its scale folded into the
//! queries' part at load. Chunks of a few hundred tokens run side by side on rayon's threads: their activations stay in the
//! cache, and what candle does on one thread is done on all.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::{layer_norm, softmax_last_dim};
use candle_transformers::models::bert::{Config, HiddenAct};
use rayon::prelude::*;

use super::activation::Activation;
use super::{Engine, EngineError};
use crate::domain::Pooling;

/// Changed when this encoder's arithmetic changes by more than the last bits: a part of every fingerprint.
pub(super) const NUMERICS_VERSION: &str = "packed-bert-f32-1";

/// Tokens that are computed together: more fit the multiplications better, fewer fit the cache better.
const CHUNK_TOKENS: usize = 512;

pub(super) struct Bert {
    words: Tensor,
    /// Position embeddings, with the embedding of the first token type added: no other type occurs in single texts.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    pooling: Pooling,
    activation: Activation,
    device: Device,
}

struct Layer {
    /// Queries (scaled), keys and values side by side.
    projections: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    /// The bias is added by the activation.
    up: Linear,
    down: Linear,
    norm: Norm,
}

struct Linear {
    /// `[inputs, outputs]`.
    weight: Tensor,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Linear {
    fn load(outputs: usize, inputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((outputs, inputs), "weight")?.t()?.contiguous()?;
        Ok(Self { weight, bias: vb.get(outputs, "bias")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Norm {
    fn load(size: usize, epsilon: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        // Older checkpoints call them gamma and beta.
        let weight = vb.get(size, "weight").or_else(|_| vb.get(size, "gamma"))?;
        let bias = vb.get(size, "bias").or_else(|_| vb.get(size, "beta"))?;
        Ok(Self { weight, bias, epsilon: epsilon as f32 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

impl Layer {
    fn load(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let size = config.hidden_size;
        let attention = vb.pp("attention");
        let own = attention.pp("self");
        let scale = 1.0 / ((size / config.num_attention_heads) as f64).sqrt();
        let [query, key, value] = [own.pp("query"), own.pp("key"), own.pp("value")];
        let (query, key, value) =
            (Linear::load(size, size, &query)?, Linear::load(size, size, &key)?, Linear::load(size, size, &value)?);
        let weight = Tensor::cat(&[(query.weight * scale)?, key.weight, value.weight], 1)?;
        let bias = Tensor::cat(&[(query.bias * scale)?, key.bias, value.bias], 0)?;
        let epsilon = config.layer_norm_eps;
        Ok(Self {
            projections: Linear { weight, bias },
            attention_output: Linear::load(size, size, &attention.pp("output").pp("dense"))?,
            attention_norm: Norm::load(size, epsilon, &attention.pp("output").pp("LayerNorm"))?,
            up: Linear::load(config.intermediate_size, size, &vb.pp("intermediate").pp("dense"))?,
            down: Linear::load(size, config.intermediate_size, &vb.pp("output").pp("dense"))?,
            norm: Norm::load(size, epsilon, &vb.pp("output").pp("LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, groups: &[Group], heads: usize, activation: Activation) -> Result<Tensor> {
        let attended = attend(&self.projections.forward(x)?, groups, heads)?;
        let x = self.attention_norm.forward(&(self.attention_output.forward(&attended)? + x)?)?;
        let inner = activation.with_bias(&x.matmul(&self.up.weight)?, &self.up.bias)?;
        self.norm.forward(&(self.down.forward(&inner)? + x)?)
    }
}

/// Neighbouring texts of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    first_row: usize,
    texts: usize,
    length: usize,
}

fn group(lengths: impl Iterator<Item = usize>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut row = 0;
    for length in lengths {
        match groups.last_mut() {
            Some(group) if group.length == length => group.texts += 1,
            _ => groups.push(Group { first_row: row, texts: 1, length }),
        }
        row += length;
    }
    groups
}

/// Attention within each text, from `[tokens, 3 × size]` projections to `[tokens, size]`.
fn attend(projections: &Tensor, groups: &[Group], heads: usize) -> Result<Tensor> {
    let size = projections.dim(1)? / 3;
    let attended = groups.iter().map(|&Group { first_row, texts, length }| {
        let split = (texts, length, 3, heads, size / heads);
        let parts = projections.narrow(0, first_row, texts * length)?.reshape(split)?;
        let part = |index| {
            let part = parts.narrow(2, index, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous()?;
            part.reshape((texts * heads, length, size / heads))
        };
        let (queries, keys, values): (Tensor, Tensor, Tensor) = (part(0)?, part(1)?, part(2)?);
        let weights = softmax_last_dim(&queries.matmul(&keys.t()?)?)?;
        let mixed = weights.matmul(&values)?.reshape((texts, heads, length, size / heads))?;
        mixed.transpose(1, 2)?.reshape((texts * length, size))
    });
    match attended.collect::<Result<Vec<Tensor>>>()?.as_slice() {
        [one] => Ok(one.clone()),
        many => Tensor::cat(many, 0),
    }
}

impl Bert {
    /// Takes its tensors from `vb`, whose names start with `embeddings` and `encoder`.
    pub(super) fn load(config: &Config, pooling: Pooling, vb: &VarBuilder<'_>) -> Result<Self> {
        let embeddings = vb.pp("embeddings");
        let size = config.hidden_size;
        let positions = embeddings.get((config.max_position_embeddings, size), "position_embeddings.weight")?;
        let types = embeddings.get((config.type_vocab_size, size), "token_type_embeddings.weight")?;
        let layers = (0..config.num_hidden_layers).map(|index| Layer::load(config, &vb.pp("encoder.layer").pp(index)));
        Ok(Self {
            words: embeddings.get((config.vocab_size, size), "word_embeddings.weight")?,
            positions: positions.broadcast_add(&types.narrow(0, 0, 1)?)?,
            norm: Norm::load(size, config.layer_norm_eps, &embeddings.pp("LayerNorm"))?,
            layers: layers.collect::<Result<_>>()?,
            heads: config.num_attention_heads,
            pooling,
            activation: match config.hidden_act {
                HiddenAct::Gelu => Activation::Gelu,
                HiddenAct::GeluApproximate => Activation::GeluTanh,
                HiddenAct::Relu => Activation::Relu,
            },
            device: vb.device().clone(),
        })
    }

    /// The pooled vectors of a few texts.
    fn forward(&self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let ids: Vec<u32> = batch.concat();
        let places: Vec<u32> = batch.iter().flat_map(|ids| 0..ids.len() as u32).collect();
        let tokens = ids.len();
        let words = self.words.index_select(&Tensor::from_vec(ids, tokens, &self.device)?, 0)?;
        let positions = self.positions.index_select(&Tensor::from_vec(places, tokens, &self.device)?, 0)?;
        let mut x = self.norm.forward(&(words + positions)?)?;
        let groups = group(batch.iter().map(|ids| ids.len()));
        for layer in &self.layers {
            x = layer.forward(&x, &groups, self.heads, self.activation)?;
        }
        let size = x.dim(1)?;
        let rows = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut rest = rows.as_slice();
        let pooled = batch.iter().map(|ids| {
            let (own, after) = rest.split_at(ids.len() * size);
            rest = after;
            pool(own, size, self.pooling)
        });
        Ok(pooled.collect())
    }
}

/// One vector from a text's token vectors, which stand row after row.
fn pool(rows: &[f32], size: usize, pooling: Pooling) -> Vec<f32> {
    let mut pooled = rows[..size].to_vec();
    if pooling == Pooling::Cls {
        return pooled;
    }
    for row in rows.chunks_exact(size).skip(1) {
        for (pooled, &value) in pooled.iter_mut().zip(row) {
            *pooled = if pooling == Pooling::Max { pooled.max(value) } else { *pooled + value };
        }
    }
    if pooling == Pooling::Mean {
        let count = (rows.len() / size) as f32;
        pooled.iter_mut().for_each(|value| *value /= count);
    }
    pooled
}

impl Engine for Bert {
    fn embed(&mut self, batch: &[&[u32]]) -> std::result::Result<Vec<Vec<f32>>, EngineError> {
        if batch.iter().any(|ids| ids.is_empty()) {
            return Err(EngineError::Tokenizer("a text has no tokens at all, not even special ones".to_owned()));
        }
        let mut chunks: Vec<&[&[u32]]> = Vec::new();
        let mut rest = batch;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|ids| {
                tokens += ids.len();
                tokens <= CHUNK_TOKENS
            });
            let (chunk, after) = rest.split_at(fits.count().max(1));
            chunks.push(chunk);
            rest = after;
        }
        let computed: Result<Vec<Vec<Vec<f32>>>> = chunks.par_iter().map(|chunk| self.forward(chunk)).collect();
        Ok(computed?.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_length_are_a_group() {
        let groups = group([3, 3, 2, 3].into_iter());
        let expected = [(0, 2, 3), (6, 1, 2), (8, 1, 3)];
        let expected = expected.map(|(first_row, texts, length)| Group { first_row, texts, length });
        assert_eq!(groups, expected);
    }

    #[test]
    fn pooling_is_the_mean_the_first_or_the_largest() {
        let rows = [1.0, 5.0, 3.0, 1.0];
        assert_eq!(pool(&rows, 2, Pooling::Mean), [2.0, 3.0]);
        assert_eq!(pool(&rows, 2, Pooling::Cls), [1.0, 5.0]);
        assert_eq!(pool(&rows, 2, Pooling::Max), [3.0, 5.0]);
    }
}
