//! JinaBERT v2 (arXiv:2310.19923): BERT whose attention fades with distance in place of positions, and with a GELU gate.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::gate::Gate;
use super::one_by_one::Network;
use super::parts::{Linear, Norm, Sight, attend, look_up, split_heads};
use super::{Refusal, demand, parse, root};

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    layer_norm_eps: f64,
    type_vocab_size: usize,
}

struct Jina {
    words: Tensor,
    /// The vector of the first token type: no other occurs in single texts.
    first_type: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    sight: Sight,
    heads: usize,
}

struct Layer {
    projections: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    gate_and_up: Linear,
    down: Linear,
    norm: Norm,
}

pub(super) fn load(config: &Value, vb: &VarBuilder<'_>) -> std::result::Result<Box<dyn Network>, Refusal> {
    demand(config, &[("feed_forward_type", "geglu".into()), ("hidden_act", "gelu".into())])?;
    let vb = root(vb, &["", "bert"], "embeddings.word_embeddings.weight")?;
    if vb.contains_tensor("encoder.layer.0.attention.self.layer_norm_q.weight") {
        return Err(Refusal::Unsupported("it is JinaBERT with normalised queries and keys (qk-post-norm)".to_owned()));
    }
    let config: Config = parse(config)?;
    let (size, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
    let layer = |index: usize| {
        let vb = vb.pp("encoder.layer").pp(index);
        let (attention, mlp) = (vb.pp("attention"), vb.pp("mlp"));
        let projection = |name| Linear::load_with_bias(size, size, &attention.pp("self").pp(name));
        Result::Ok(Layer {
            projections: Linear::side_by_side(vec![projection("query")?, projection("key")?, projection("value")?])?,
            attention_output: Linear::load_with_bias(size, size, &attention.pp("output.dense"))?,
            attention_norm: Norm::layer(size, epsilon, &attention.pp("output.LayerNorm"))?,
            gate_and_up: Linear::load(2 * inner, size, &mlp.pp("gated_layers"))?,
            down: Linear::load_with_bias(size, inner, &mlp.pp("wo"))?,
            norm: Norm::layer(size, epsilon, &mlp.pp("layernorm"))?,
        })
    };
    let embeddings = vb.pp("embeddings");
    let types = embeddings.get((config.type_vocab_size, size), "token_type_embeddings.weight")?;
    Ok(Box::new(Jina {
        words: embeddings.get((config.vocab_size, size), "word_embeddings.weight")?,
        first_type: types.narrow(0, 0, 1)?,
        norm: Norm::layer(size, epsilon, &embeddings.pp("LayerNorm"))?,
        layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        sight: Sight::Fading(penalties(config.num_attention_heads)),
        heads: config.num_attention_heads,
    }))
}

/// Each head's penalty for a unit of distance: a geometric series that ends with 2⁻⁸. For a number of heads that is no power of
/// two, that of the power below, and every other one of the series twice as long.
fn penalties(heads: usize) -> Vec<f32> {
    let series = |heads: usize| (1..=heads).map(move |head| 2f32.powf(-8.0 * head as f32 / heads as f32));
    if heads.is_power_of_two() {
        return series(heads).collect();
    }
    let below = 1 << heads.ilog2();
    series(below).chain(series(2 * below).step_by(2).take(heads - below)).collect()
}

impl Network for Jina {
    fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let mut x = self.norm.forward(&look_up(&self.words, ids)?.broadcast_add(&self.first_type)?)?;
        let size = x.dim(1)?;
        for layer in &self.layers {
            let projected = layer.projections.forward(&x)?;
            let part = |index| split_heads(&projected.narrow(1, index * size, size)?, self.heads);
            let attended = attend(&part(0)?, &part(1)?, &part(2)?, &self.sight)?;
            x = layer.attention_norm.forward(&(layer.attention_output.forward(&attended)? + x)?)?;
            let inner = Gate::Gelu.apply(&layer.gate_and_up.forward(&x)?)?;
            x = layer.norm.forward(&(layer.down.forward(&inner)? + x)?)?;
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_halve_from_head_to_head_and_fill_up_with_those_between() {
        assert_eq!(penalties(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(penalties(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
    }
}
