//! NomicBERT (nomic-embed-text-v1 and v1.5): BERT with rotations for positions, a SiLU gate and no biases.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::gate::Gate;
use super::one_by_one::Network;
use super::parts::{Linear, Norm, Rotary, Sight, attend, look_up, split_heads};
use super::{Refusal, demand, parse, root};

/// Both the names of the repositories' own code and those of transformers.
#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_inner")]
    intermediate_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "layer_norm_epsilon")]
    layer_norm_eps: f64,
    type_vocab_size: usize,
    rotary_emb_base: Option<f64>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: f64,
}

struct Nomic {
    words: Tensor,
    /// The vector of the first token type: no other occurs in single texts.
    first_type: Tensor,
    norm: Norm,
    rotary: Rotary,
    layers: Vec<Layer>,
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

pub(super) fn load(
    config: &Value,
    vb: &VarBuilder<'_>,
    max_tokens: usize,
) -> std::result::Result<Box<dyn Network>, Refusal> {
    demand(
        config,
        &[
            ("activation_function", "swiglu".into()),
            ("hidden_act", "silu".into()),
            ("prenorm", false.into()),
            ("parallel_block", false.into()),
            ("use_rms_norm", false.into()),
            ("causal", false.into()),
            ("qkv_proj_bias", false.into()),
            ("mlp_fc1_bias", false.into()),
            ("mlp_fc2_bias", false.into()),
            ("rotary_emb_fraction", 1.0.into()),
            ("rotary_emb_interleaved", false.into()),
            ("rotary_emb_scale_base", Value::Null),
            ("rotary_scaling_factor", Value::Null),
            ("num_experts", 0.into()),
        ],
    )?;
    demand(&config["rope_parameters"], &[("rope_type", "default".into())])?;
    let vb = root(vb, &["", "nomic_bert", "bert"], "embeddings.word_embeddings.weight")?;
    let config: Config = parse(config)?;
    let (size, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
    let base = config.rotary_emb_base.or(config.rope_parameters.map(|rope| rope.rope_theta)).unwrap_or(1000.0);
    let layer = |index: usize| {
        let vb = vb.pp("encoder.layers").pp(index);
        let (attention, mlp) = (vb.pp("attn"), vb.pp("mlp"));
        let gate = Linear::load(inner, size, &mlp.pp("fc12"))?;
        let up = Linear::load(inner, size, &mlp.pp("fc11"))?;
        Result::Ok(Layer {
            projections: Linear::load(3 * size, size, &attention.pp("Wqkv"))?,
            attention_output: Linear::load(size, size, &attention.pp("out_proj"))?,
            attention_norm: Norm::layer(size, epsilon, &vb.pp("norm1"))?,
            gate_and_up: Linear::side_by_side(vec![gate, up])?,
            down: Linear::load(size, inner, &mlp.pp("fc2"))?,
            norm: Norm::layer(size, epsilon, &vb.pp("norm2"))?,
        })
    };
    let types = vb.get((config.type_vocab_size, size), "embeddings.token_type_embeddings.weight")?;
    Ok(Box::new(Nomic {
        words: vb.get((config.vocab_size, size), "embeddings.word_embeddings.weight")?,
        first_type: types.narrow(0, 0, 1)?,
        norm: Norm::layer(size, epsilon, &vb.pp("emb_ln"))?,
        rotary: Rotary::new(max_tokens, size / config.num_attention_heads, base, vb.device())?,
        layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        heads: config.num_attention_heads,
    }))
}

impl Network for Nomic {
    fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let mut x = self.norm.forward(&look_up(&self.words, ids)?.broadcast_add(&self.first_type)?)?;
        let size = x.dim(1)?;
        for layer in &self.layers {
            let projected = layer.projections.forward(&x)?;
            let part = |index| split_heads(&projected.narrow(1, index * size, size)?, self.heads);
            let (queries, keys) = (self.rotary.forward(&part(0)?)?, self.rotary.forward(&part(1)?)?);
            let attended = layer.attention_output.forward(&attend(&queries, &keys, &part(2)?, &Sight::All)?)?;
            x = layer.attention_norm.forward(&(x + attended)?)?;
            let inner = Gate::Silu.apply(&layer.gate_and_up.forward(&x)?)?;
            x = layer.norm.forward(&(layer.down.forward(&inner)? + x)?)?;
        }
        Ok(x)
    }
}
