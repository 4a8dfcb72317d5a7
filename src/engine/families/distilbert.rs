//! DistilBERT: BERT under other names, without token types.

use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::super::kernel::Activation;
use super::super::weights::{LayerWeights, Linear, Norm, Weights};
use super::{Refusal, parse, root};

/// Not in the configuration: it is the same for all.
const EPSILON: f64 = 1e-12;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: String,
}

fn gelu() -> String {
    "gelu".to_owned()
}

pub(super) fn load(config: &Value, vb: &VarBuilder<'_>) -> Result<Weights, Refusal> {
    let vb = root(vb, &["", "distilbert"], "embeddings.word_embeddings.weight")?;
    let config: Config = parse(config)?;
    let activation = match config.activation.as_str() {
        "gelu" => Activation::Gelu,
        "relu" => Activation::Relu,
        other => return Err(Refusal::Unsupported(format!("its activation is {other}, not gelu or relu"))),
    };
    let embeddings = vb.pp("embeddings");
    let size = config.dim;
    let layer = |index: usize| {
        let vb = vb.pp("transformer.layer").pp(index);
        let attention = vb.pp("attention");
        candle_core::Result::Ok(LayerWeights {
            query: Linear::load(size, size, &attention.pp("q_lin"))?,
            key: Linear::load(size, size, &attention.pp("k_lin"))?,
            value: Linear::load(size, size, &attention.pp("v_lin"))?,
            attention_output: Linear::load(size, size, &attention.pp("out_lin"))?,
            attention_norm: Norm::load(size, EPSILON, &vb.pp("sa_layer_norm"))?,
            up: Linear::load(config.hidden_dim, size, &vb.pp("ffn.lin1"))?,
            down: Linear::load(size, config.hidden_dim, &vb.pp("ffn.lin2"))?,
            norm: Norm::load(size, EPSILON, &vb.pp("output_layer_norm"))?,
        })
    };
    Ok(Weights {
        words: embeddings.get((config.vocab_size, size), "word_embeddings.weight")?,
        positions: embeddings.get((config.max_position_embeddings, size), "position_embeddings.weight")?,
        norm: Norm::load(size, EPSILON, &embeddings.pp("LayerNorm"))?,
        layers: (0..config.n_layers).map(layer).collect::<candle_core::Result<_>>()?,
        heads: config.n_heads,
        activation,
        distances: None,
    })
}
