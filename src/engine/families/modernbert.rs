//! ModernBERT (arXiv:2412.13663): normalised before each part, rotations for positions, a GELU gate, no biases; most layers
//! see only a window around each token.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::gate::Gate;
use super::one_by_one::Network;
use super::parts::{Linear, Norm, Rotary, Sight, attend, look_up, split_heads};
use super::{Refusal, demand, parse, root};

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    norm_eps: f64,
    /// The whole window, both sides.
    local_attention: usize,
    #[serde(default = "usual_distance")]
    global_attn_every_n_layers: usize,
    /// Of newer configurations, in place of the distance.
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
}

fn usual_distance() -> usize {
    3
}

struct ModernBert {
    words: Tensor,
    norm: Norm,
    /// Of layers that see everything, and of those that see a window.
    rotary: [Rotary; 2],
    sight: [Sight; 2],
    layers: Vec<Layer>,
    final_norm: Norm,
    heads: usize,
}

struct Layer {
    local: bool,
    /// The first layer has none: the embeddings are normalised already.
    attention_norm: Option<Norm>,
    projections: Linear,
    attention_output: Linear,
    norm: Norm,
    gate_and_up: Linear,
    down: Linear,
}

pub(super) fn load(
    config: &Value,
    vb: &VarBuilder<'_>,
    max_tokens: usize,
) -> std::result::Result<Box<dyn Network>, Refusal> {
    demand(
        config,
        &[
            ("hidden_activation", "gelu".into()),
            ("norm_bias", false.into()),
            ("attention_bias", false.into()),
            ("mlp_bias", false.into()),
            ("rope_scaling", Value::Null),
        ],
    )?;
    let rope = &config["rope_parameters"];
    for kind in ["full_attention", "sliding_attention"] {
        demand(&rope[kind], &[("rope_type", "default".into())])?;
    }
    let bases = [rope["full_attention"]["rope_theta"].as_f64(), rope["sliding_attention"]["rope_theta"].as_f64()];
    let vb = root(vb, &["", "model"], "embeddings.tok_embeddings.weight")?;
    let config: Config = parse(config)?;
    let (size, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.norm_eps);
    let local = |index: usize| match config.layer_types.as_ref().map(|types| types.get(index).map(String::as_str)) {
        None => Ok(!index.is_multiple_of(config.global_attn_every_n_layers.max(1))),
        Some(Some("sliding_attention")) => Ok(true),
        Some(Some("full_attention")) => Ok(false),
        Some(other) => Err(Refusal::Unsupported(format!("the attention of its layer {index} is {other:?}"))),
    };
    let layer = |index: usize| {
        let vb = vb.pp("layers").pp(index);
        Ok(Layer {
            local: local(index)?,
            attention_norm: match index {
                0 => None,
                _ => Some(Norm::layer_without_bias(size, epsilon, &vb.pp("attn_norm"))?),
            },
            projections: Linear::load(3 * size, size, &vb.pp("attn.Wqkv"))?,
            attention_output: Linear::load(size, size, &vb.pp("attn.Wo"))?,
            norm: Norm::layer_without_bias(size, epsilon, &vb.pp("mlp_norm"))?,
            gate_and_up: Linear::load(2 * inner, size, &vb.pp("mlp.Wi"))?,
            down: Linear::load(size, inner, &vb.pp("mlp.Wo"))?,
        })
    };
    let head = size / config.num_attention_heads;
    let rotary = |base| Rotary::new(max_tokens, head, base, vb.device());
    Ok(Box::new(ModernBert {
        words: vb.get((config.vocab_size, size), "embeddings.tok_embeddings.weight")?,
        norm: Norm::layer_without_bias(size, epsilon, &vb.pp("embeddings.norm"))?,
        rotary: [
            rotary(bases[0].or(config.global_rope_theta).unwrap_or(160_000.0))?,
            rotary(bases[1].or(config.local_rope_theta).unwrap_or(10_000.0))?,
        ],
        sight: [Sight::All, Sight::Near(config.local_attention / 2)],
        layers: (0..config.num_hidden_layers).map(layer).collect::<std::result::Result<_, Refusal>>()?,
        final_norm: Norm::layer_without_bias(size, epsilon, &vb.pp("final_norm"))?,
        heads: config.num_attention_heads,
    }))
}

impl Network for ModernBert {
    fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let mut x = self.norm.forward(&look_up(&self.words, ids)?)?;
        let size = x.dim(1)?;
        for layer in &self.layers {
            let kind = usize::from(layer.local);
            let projected = match &layer.attention_norm {
                Some(norm) => layer.projections.forward(&norm.forward(&x)?)?,
                None => layer.projections.forward(&x)?,
            };
            let part = |index| split_heads(&projected.narrow(1, index * size, size)?, self.heads);
            let (queries, keys) = (self.rotary[kind].forward(&part(0)?)?, self.rotary[kind].forward(&part(1)?)?);
            let attended = attend(&queries, &keys, &part(2)?, &self.sight[kind])?;
            x = (x + layer.attention_output.forward(&attended)?)?;
            let inner = Gate::Gelu.apply(&layer.gate_and_up.forward(&layer.norm.forward(&x)?)?)?;
            x = (x + layer.down.forward(&inner)?)?;
        }
        self.final_norm.forward(&x)
    }
}
