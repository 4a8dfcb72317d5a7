//! MPNet: BERT whose attention also looks at the distance between two tokens; without token types, and with positions that
//! start after the padding's id.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::super::kernel::Activation;
use super::super::weights::{LayerWeights, Linear, Norm, Weights};
use super::{Refusal, demand, padding, parse, root};

/// Distances beyond this one share a bucket: it is the same for all checkpoints.
const FARTHEST: f32 = 128.0;

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f64,
    #[serde(default = "usual_buckets")]
    relative_attention_num_buckets: usize,
}

fn usual_buckets() -> usize {
    32
}

pub(super) fn load(config: &Value, vb: &VarBuilder<'_>) -> Result<Weights, Refusal> {
    demand(config, &[("hidden_act", "gelu".into())])?;
    let vb = root(vb, &["", "mpnet"], "embeddings.word_embeddings.weight")?;
    let first = padding(config) + 1;
    let config: Config = parse(config)?;
    let (size, epsilon, heads) = (config.hidden_size, config.layer_norm_eps, config.num_attention_heads);
    let (embeddings, encoder) = (vb.pp("embeddings"), vb.pp("encoder"));
    let layer = |index: usize| {
        let vb = encoder.pp("layer").pp(index);
        let attention = vb.pp("attention");
        candle_core::Result::Ok(LayerWeights {
            query: Linear::load(size, size, &attention.pp("attn.q"))?,
            key: Linear::load(size, size, &attention.pp("attn.k"))?,
            value: Linear::load(size, size, &attention.pp("attn.v"))?,
            attention_output: Linear::load(size, size, &attention.pp("attn.o"))?,
            attention_norm: Norm::load(size, epsilon, &attention.pp("LayerNorm"))?,
            up: Linear::load(config.intermediate_size, size, &vb.pp("intermediate.dense"))?,
            down: Linear::load(size, config.intermediate_size, &vb.pp("output.dense"))?,
            norm: Norm::load(size, epsilon, &vb.pp("output.LayerNorm"))?,
        })
    };
    let positions = embeddings.get((config.max_position_embeddings, size), "position_embeddings.weight")?;
    let places = config.max_position_embeddings.saturating_sub(first);
    let buckets = config.relative_attention_num_buckets;
    let by_bucket = encoder.get((buckets, heads), "relative_attention_bias.weight")?;
    let distances: Vec<u32> =
        (0..2 * places - 1).map(|index| bucket(index as i64 - (places as i64 - 1), buckets)).collect();
    let distances = Tensor::from_vec(distances, 2 * places - 1, by_bucket.device())?;
    Ok(Weights {
        words: embeddings.get((config.vocab_size, size), "word_embeddings.weight")?,
        positions: positions.narrow(0, first, places)?,
        norm: Norm::load(size, epsilon, &embeddings.pp("LayerNorm"))?,
        layers: (0..config.num_hidden_layers).map(layer).collect::<candle_core::Result<_>>()?,
        heads,
        activation: Activation::Gelu,
        distances: Some(by_bucket.index_select(&distances, 0)?.t()?.contiguous()?),
    })
}

/// The bucket of a distance, key's place less query's: one half of the buckets for keys before and one for keys after;
/// in each, near distances have their own, farther ones share, ever more of them (T5, arXiv:1910.10683, section 2.1).
fn bucket(distance: i64, buckets: usize) -> u32 {
    let half = buckets / 2;
    let side = if distance > 0 { half } else { 0 };
    let near = half / 2;
    let away = distance.unsigned_abs() as usize;
    let within = if away < near {
        away
    } else {
        let share = (away as f32 / near as f32).ln() / (FARTHEST / near as f32).ln();
        (near + (share * (half - near) as f32) as usize).min(half - 1)
    };
    (side + within) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_a_bucket_each_and_far_ones_share() {
        let buckets = |distances: &[i64]| distances.iter().map(|&d| bucket(d, 32)).collect::<Vec<_>>();
        assert_eq!(buckets(&[0, -1, -7, 1, 7]), [0, 1, 7, 17, 23]);
        assert_eq!(buckets(&[-8, -11, -12, -16, -127, -128, -500]), [8, 8, 9, 10, 15, 15, 15]);
        assert_eq!(buckets(&[8, 500]), [24, 31]);
    }
}
