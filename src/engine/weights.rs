//! The weights of a BERT-shaped encoder, whatever its checkpoint calls them: what every way of computing one is made from.
//!
//! ```text
//! x = norm(words[id] + positions[place])
//! each layer:  x = norm(x + attention_output(attend(query(x), key(x), value(x))))
//!              x = norm(x + down(activation(up(x))))
//! ```
//!
//! Queries are not scaled yet, and token types are in the positions: no other type than the first occurs in single texts.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{Config, HiddenAct};

use super::kernel::Activation;

/// An encoder's weights and shape.
#[derive(Clone)]
pub(super) struct Weights {
    /// `[vocabulary, size]`.
    pub(super) words: Tensor,
    /// `[places, size]`: what is added to a text's first token, second token, and so on.
    pub(super) positions: Tensor,
    pub(super) norm: Norm,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) heads: usize,
    pub(super) activation: Activation,
    /// `[heads, 2 × places − 1]`: what is added to a query's scaled product with a key, by `key's place − query's place +
    /// places − 1`, for models whose attention looks at distances.
    pub(super) distances: Option<Tensor>,
}

/// One layer's.
#[derive(Clone)]
pub(super) struct LayerWeights {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) norm: Norm,
}

/// `x · weightᵀ + bias`.
#[derive(Clone)]
pub(super) struct Linear {
    /// `[outputs, inputs]`, as checkpoints have it.
    pub(super) weight: Tensor,
    /// `[outputs]`.
    pub(super) bias: Tensor,
}

/// Layer normalisation.
#[derive(Clone)]
pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) epsilon: f32,
}

impl Linear {
    pub(super) fn load(outputs: usize, inputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: vb.get(outputs, "bias")? })
    }
}

impl Norm {
    pub(super) fn load(size: usize, epsilon: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        // Older checkpoints call them gamma and beta.
        let weight = vb.get(size, "weight").or_else(|_| vb.get(size, "gamma"))?;
        let bias = vb.get(size, "bias").or_else(|_| vb.get(size, "beta"))?;
        Ok(Self { weight, bias, epsilon: epsilon as f32 })
    }
}

impl Weights {
    /// BERT's, from tensors whose names start with `embeddings` and `encoder`.
    pub(super) fn bert(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let embeddings = vb.pp("embeddings");
        let size = config.hidden_size;
        let positions = embeddings.get((config.max_position_embeddings, size), "position_embeddings.weight")?;
        let types = embeddings.get((config.type_vocab_size, size), "token_type_embeddings.weight")?;
        let layer = |index: usize| LayerWeights::bert(config, &vb.pp("encoder.layer").pp(index));
        Ok(Self {
            words: embeddings.get((config.vocab_size, size), "word_embeddings.weight")?,
            positions: positions.broadcast_add(&types.narrow(0, 0, 1)?)?,
            norm: Norm::load(size, config.layer_norm_eps, &embeddings.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            heads: config.num_attention_heads,
            activation: match config.hidden_act {
                HiddenAct::Gelu => Activation::Gelu,
                HiddenAct::GeluApproximate => Activation::GeluTanh,
                HiddenAct::Relu => Activation::Relu,
            },
            distances: None,
        })
    }

    /// Length of a token's vector.
    pub(super) fn size(&self) -> Result<usize> {
        self.words.dim(1)
    }
}

impl LayerWeights {
    fn bert(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let size = config.hidden_size;
        let attention = vb.pp("attention");
        let (own, output) = (attention.pp("self"), attention.pp("output"));
        let epsilon = config.layer_norm_eps;
        Ok(Self {
            query: Linear::load(size, size, &own.pp("query"))?,
            key: Linear::load(size, size, &own.pp("key"))?,
            value: Linear::load(size, size, &own.pp("value"))?,
            attention_output: Linear::load(size, size, &output.pp("dense"))?,
            attention_norm: Norm::load(size, epsilon, &output.pp("LayerNorm"))?,
            up: Linear::load(config.intermediate_size, size, &vb.pp("intermediate").pp("dense"))?,
            down: Linear::load(size, config.intermediate_size, &vb.pp("output").pp("dense"))?,
            norm: Norm::load(size, epsilon, &vb.pp("output").pp("LayerNorm"))?,
        })
    }
}

/// A tensor's values in order, in f32.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
