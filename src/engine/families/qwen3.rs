//! Qwen3 as an embedder (arXiv:2506.05176): each token sees those before it, several query heads share one of keys and values,
//! queries and keys are normalised, a SiLU gate, no biases. The last token's vector is the text's.

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
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: f64,
}

struct Qwen3 {
    words: Tensor,
    rotary: Rotary,
    layers: Vec<Layer>,
    norm: Norm,
    heads: usize,
    /// Heads of keys and values.
    shared_heads: usize,
    head: usize,
}

struct Layer {
    attention_norm: Norm,
    /// Queries, keys and values side by side.
    projections: Linear,
    query_norm: Norm,
    key_norm: Norm,
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
            ("hidden_act", "silu".into()),
            ("attention_bias", false.into()),
            ("use_sliding_window", false.into()),
            ("rope_scaling", Value::Null),
        ],
    )?;
    demand(&config["rope_parameters"], &[("rope_type", "default".into())])?;
    let vb = root(vb, &["", "model"], "embed_tokens.weight")?;
    let config: Config = parse(config)?;
    let (size, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
    let (heads, shared_heads, head) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    if shared_heads == 0 || !heads.is_multiple_of(shared_heads) || !head.is_multiple_of(2) {
        let what = format!("{heads} heads of {head} values cannot share {shared_heads} heads of keys and values");
        return Err(Refusal::Config(what));
    }
    let base = config.rope_theta.or(config.rope_parameters.map(|rope| rope.rope_theta)).unwrap_or(1e6);
    let layer = |index: usize| {
        let vb = vb.pp("layers").pp(index);
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        let projection = |name, heads| Linear::load(heads * head, size, &attention.pp(name));
        let gated = |name| Linear::load(inner, size, &mlp.pp(name));
        let projections = vec![
            projection("q_proj", heads)?,
            projection("k_proj", shared_heads)?,
            projection("v_proj", shared_heads)?,
        ];
        Result::Ok(Layer {
            attention_norm: Norm::mean_square(size, epsilon, &vb.pp("input_layernorm"))?,
            projections: Linear::side_by_side(projections)?,
            query_norm: Norm::mean_square(head, epsilon, &attention.pp("q_norm"))?,
            key_norm: Norm::mean_square(head, epsilon, &attention.pp("k_norm"))?,
            attention_output: Linear::load(size, heads * head, &attention.pp("o_proj"))?,
            norm: Norm::mean_square(size, epsilon, &vb.pp("post_attention_layernorm"))?,
            gate_and_up: Linear::side_by_side(vec![gated("gate_proj")?, gated("up_proj")?])?,
            down: Linear::load(size, inner, &mlp.pp("down_proj"))?,
        })
    };
    Ok(Box::new(Qwen3 {
        words: vb.get((config.vocab_size, size), "embed_tokens.weight")?,
        rotary: Rotary::new(max_tokens, head, base, vb.device())?,
        layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        norm: Norm::mean_square(size, epsilon, &vb.pp("norm"))?,
        heads,
        shared_heads,
        head,
    }))
}

impl Qwen3 {
    /// Each head of keys or values as often as query heads share it.
    fn repeat(&self, x: &Tensor) -> Result<Tensor> {
        let (shared_heads, tokens, head) = x.dims3()?;
        let times = self.heads / shared_heads;
        x.unsqueeze(1)?.expand((shared_heads, times, tokens, head))?.contiguous()?.reshape((self.heads, tokens, head))
    }
}

impl Network for Qwen3 {
    fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let mut x = look_up(&self.words, ids)?;
        let (queries_width, shared_width) = (self.heads * self.head, self.shared_heads * self.head);
        for layer in &self.layers {
            let projected = layer.projections.forward(&layer.attention_norm.forward(&x)?)?;
            let part = |from, width, heads| split_heads(&projected.narrow(1, from, width)?, heads);
            let queries = layer.query_norm.forward(&part(0, queries_width, self.heads)?)?;
            let keys = layer.key_norm.forward(&part(queries_width, shared_width, self.shared_heads)?)?;
            let values = part(queries_width + shared_width, shared_width, self.shared_heads)?;
            let (queries, keys) = (self.rotary.forward(&queries)?, self.rotary.forward(&keys)?);
            let attended = attend(&queries, &self.repeat(&keys)?, &self.repeat(&values)?, &Sight::Before)?;
            x = (x + layer.attention_output.forward(&attended)?)?;
            let inner = Gate::Silu.apply(&layer.gate_and_up.forward(&layer.norm.forward(&x)?)?)?;
            x = (x + layer.down.forward(&inner)?)?;
        }
        self.norm.forward(&x)
    }
}
