//! What the networks that are computed one text at a time are made of. Rows are tokens.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::{layer_norm, rms_norm, softmax_last_dim};

/// Scores of queries with keys that are held at once: 16 MiB, so that memory does not grow with the square of a text.
const SCORES_MAX: usize = 4 << 20;

/// The vectors of some ids.
pub(super) fn look_up(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::new(ids, table.device())?, 0)
}

/// `x · weightᵀ`, and a bias if there is one.
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn load(outputs: usize, inputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self::new(vb.get((outputs, inputs), "weight")?))
    }

    pub(super) fn load_with_bias(outputs: usize, inputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { bias: Some(vb.get(outputs, "bias")?), ..Self::load(outputs, inputs, vb)? })
    }

    /// Several with the same inputs as one, their outputs side by side.
    pub(super) fn side_by_side(all: Vec<Self>) -> Result<Self> {
        let weights: Vec<Tensor> = all.iter().map(|linear| linear.weight.clone()).collect();
        let biases: Vec<Tensor> = all.into_iter().filter_map(|linear| linear.bias).collect();
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        Ok(Self { weight: Tensor::cat(&weights, 0)?, bias })
    }

    pub(super) fn new(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => x.broadcast_add(bias),
            None => Ok(x),
        }
    }
}

/// A normalisation of each row.
pub(super) enum Norm {
    /// To mean 0 and variance 1.
    Layer { weight: Tensor, bias: Tensor, epsilon: f32 },
    /// To mean square 1.
    MeanSquare { weight: Tensor, epsilon: f32 },
}

impl Norm {
    pub(super) fn layer(size: usize, epsilon: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let (weight, bias) = (vb.get(size, "weight")?, vb.get(size, "bias")?);
        Ok(Self::Layer { weight, bias, epsilon: epsilon as f32 })
    }

    pub(super) fn layer_without_bias(size: usize, epsilon: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get(size, "weight")?;
        Ok(Self::Layer { bias: weight.zeros_like()?, weight, epsilon: epsilon as f32 })
    }

    pub(super) fn mean_square(size: usize, epsilon: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self::MeanSquare { weight: vb.get(size, "weight")?, epsilon: epsilon as f32 })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer { weight, bias, epsilon } => layer_norm(x, weight, bias, *epsilon),
            Self::MeanSquare { weight, epsilon } => rms_norm(x, weight, *epsilon),
        }
    }
}

/// Rotations of queries and keys by their place (arXiv:2104.09864), first half of a head's values against the second.
pub(super) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub(super) fn new(places: usize, head: usize, base: f64, device: &Device) -> Result<Self> {
        let frequencies: Vec<f32> =
            (0..head / 2).map(|pair| base.powf(-(2.0 * pair as f64) / head as f64) as f32).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, head / 2), device)?;
        let places = Tensor::arange(0, places as u32, device)?.to_dtype(DType::F32)?.unsqueeze(1)?;
        let angles = places.broadcast_mul(&frequencies)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()? })
    }

    /// Rotates `[heads, tokens, head]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?.contiguous()?, &self.cos, &self.sin)?.squeeze(0)
    }
}

/// `[tokens, heads × head]` as `[heads, tokens, head]`.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (tokens, size) = x.dims2()?;
    x.reshape((tokens, heads, size / heads))?.transpose(0, 1)?.contiguous()
}

/// Which keys a query sees, and how they are weighed before the scores become shares.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    /// All, alike.
    All,
    /// Those at most so far away.
    Near(usize),
    /// Itself and those before it.
    Before,
    /// All, each head by its own penalty for a unit of distance (ALiBi, arXiv:2108.12409).
    Fading(Vec<f32>),
}

impl Sight {
    /// The keys that queries `from..to` may see at all.
    fn keys(&self, from: usize, to: usize, tokens: usize) -> (usize, usize) {
        match self {
            Self::All | Self::Fading(_) => (0, tokens),
            Self::Near(reach) => (from.saturating_sub(*reach), (to + reach).min(tokens)),
            Self::Before => (0, to),
        }
    }

    /// What is added to the scores of queries `from..to` with keys `first..last`.
    fn bias(&self, from: usize, to: usize, first: usize, last: usize, device: &Device) -> Result<Option<Tensor>> {
        let (queries, keys) = (to - from, last - first);
        let pairs = || (from..to).flat_map(move |query| (first..last).map(move |key| (query, key)));
        let hidden = |seen: bool| if seen { 0.0 } else { f32::NEG_INFINITY };
        let (heads, values): (usize, Vec<f32>) = match self {
            Self::All => return Ok(None),
            Self::Near(reach) => (1, pairs().map(|(query, key)| hidden(query.abs_diff(key) <= *reach)).collect()),
            Self::Before => (1, pairs().map(|(query, key)| hidden(key <= query)).collect()),
            Self::Fading(penalties) => {
                let of = |penalty: f32| pairs().map(move |(query, key)| -penalty * query.abs_diff(key) as f32);
                (penalties.len(), penalties.iter().flat_map(|&penalty| of(penalty)).collect())
            }
        };
        Tensor::from_vec(values, (heads, queries, keys), device).map(Some)
    }
}

/// Attention of one text, from `[heads, tokens, head]` to `[tokens, heads × head]`. Queries are taken some at a time, by
/// the text's length alone.
pub(super) fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, sight: &Sight) -> Result<Tensor> {
    let (heads, tokens, head) = queries.dims3()?;
    let queries = (queries * (1.0 / (head as f64).sqrt()))?;
    let at_once = (SCORES_MAX / (heads * tokens)).clamp(1, tokens);
    let mut mixed = Vec::new();
    for from in (0..tokens).step_by(at_once) {
        let to = (from + at_once).min(tokens);
        let (first, last) = sight.keys(from, to, tokens);
        let (keys, values) = (keys.narrow(1, first, last - first)?, values.narrow(1, first, last - first)?);
        let scores = queries.narrow(1, from, to - from)?.contiguous()?.matmul(&keys.contiguous()?.transpose(1, 2)?)?;
        let scores = match sight.bias(from, to, first, last, scores.device())? {
            Some(bias) => scores.broadcast_add(&bias)?,
            None => scores,
        };
        mixed.push(softmax_last_dim(&scores)?.matmul(&values.contiguous()?)?);
    }
    Tensor::cat(&mixed, 1)?.transpose(0, 1)?.contiguous()?.flatten_from(D::Minus2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long texts are attended to in pieces: each piece sees the same keys under the same bias as in one go.
    #[test]
    fn queries_taken_some_at_a_time_give_what_all_at_once_give() {
        let (heads, tokens, head) = (2, 2500, 4);
        let drawn = || Tensor::randn(0f32, 1.0, (heads, tokens, head), &Device::Cpu).unwrap();
        let (queries, keys, values) = (drawn(), drawn(), drawn());
        for sight in [Sight::All, Sight::Near(7), Sight::Before, Sight::Fading(vec![0.5, 0.01])] {
            assert!(heads * tokens * tokens > 2 * SCORES_MAX);
            let found = attend(&queries, &keys, &values, &sight).unwrap();
            let scores = (&queries * 0.5).unwrap().matmul(&keys.t().unwrap()).unwrap();
            let scores = match sight.bias(0, tokens, 0, tokens, &Device::Cpu).unwrap() {
                Some(bias) => scores.broadcast_add(&bias).unwrap(),
                None => scores,
            };
            let whole = softmax_last_dim(&scores).unwrap().matmul(&values).unwrap();
            let whole = whole.transpose(0, 1).unwrap().reshape((tokens, heads * head)).unwrap();
            let off = (found - whole).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-5, "{sight:?}: {off}");
        }
    }
}
