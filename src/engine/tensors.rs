//! The BERT encoder for a GPU: candle's tensors, padded batches, 16-bit floating point.
//!
//! ```text
//! texts ─► sorted by length ─► cut into batches that pad little ─► one transfer in  ─► one launch after another
//!                                                                  all batches' vectors ◄─ one transfer out each
//! ```
//!
//! Every batch is on its way before the first vector is read, so the device does not wait for this thread. The mask is made
//! on the device from the texts' lengths, and is finite: what is masked weighs exactly nothing, and no infinity can become
//! NaN. Multiplications add up in f32 whatever they read, layer normalisation computes in f32, and so does pooling.
//!
//! Runs on any device of candle's; on a processor for its tests only, where `encoder` is faster.

use std::cmp::Reverse;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use super::kernel::Activation;
use super::weights::{self, LayerWeights, Norm, Weights};
use super::{Engine, EngineError, check_not_empty};
use crate::domain::Pooling;

/// The most tokens of a batch, padding counted in.
const BATCH_TOKENS_MAX: usize = 64 << 10;
/// The most products of a query with a key in a batch, of all its heads: the largest tensor there is.
const BATCH_PRODUCTS_MAX: usize = 256 << 20;
/// A batch of its own is worth what this many tokens of padding are: less fills a GPU too little for its launches to be hidden.
/// An estimate, to be measured.
const BATCH_COSTS_TOKENS: usize = 512;
/// Lengths are rounded up to a multiple of this, as the matrix units of GPUs want it.
const LENGTH_STEP: usize = 8;
/// What is added to the product of a query with a key that is padding: finite in f16, and e to its power is 0 there.
const MASKED: f64 = -1e4;

pub(super) struct Tensors {
    words: Tensor,
    /// Position embeddings, with the embedding of the first token type added.
    positions: Tensor,
    /// 0, 1, 2 … on the device, to twice the places.
    numbers: Tensor,
    /// The most tokens of a text.
    places: usize,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    pooling: Pooling,
    activation: Activation,
    distances: Option<Tensor>,
    vocabulary: usize,
    device: Device,
    precision: DType,
}

struct Layer {
    /// Queries (scaled), keys and values side by side.
    projections: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

struct Linear {
    /// `[inputs, outputs]`.
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// Brings weights to a device. What is computed with them beforehand is computed in f32.
struct Carrier<'a> {
    device: &'a Device,
    precision: DType,
}

impl Carrier<'_> {
    fn tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_dtype(self.precision)?.to_device(self.device)
    }

    fn linear(&self, weights: &weights::Linear) -> Result<Linear> {
        let weight = self.tensor(&weights.weight.t()?.contiguous()?)?;
        Ok(Linear { weight, bias: self.tensor(&weights.bias)? })
    }

    fn norm(&self, norm: &Norm) -> Result<Norm> {
        Ok(Norm { weight: self.tensor(&norm.weight)?, bias: self.tensor(&norm.bias)?, epsilon: norm.epsilon })
    }

    fn layer(&self, weights: &LayerWeights, heads: usize) -> Result<Layer> {
        let LayerWeights { query, key, value, .. } = weights;
        let scale = 1.0 / ((query.weight.dim(0)? / heads) as f64).sqrt();
        let weight = Tensor::cat(&[&(&query.weight * scale)?, &key.weight, &value.weight], 0)?;
        let bias = Tensor::cat(&[&(&query.bias * scale)?, &key.bias, &value.bias], 0)?;
        Ok(Layer {
            projections: self.linear(&weights::Linear { weight, bias })?,
            attention_output: self.linear(&weights.attention_output)?,
            attention_norm: self.norm(&weights.attention_norm)?,
            up: self.linear(&weights.up)?,
            down: self.linear(&weights.down)?,
            norm: self.norm(&weights.norm)?,
        })
    }
}

impl Norm {
    fn on_device(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

/// The shape of a padded batch, and what all of its layers need.
struct Batch {
    texts: usize,
    length: usize,
    /// `[texts, length]`: 1 for a token, 0 for padding.
    keep: Tensor,
    /// Added to the products of queries and keys: `[texts, 1, 1, length]`, with distances `[texts, heads, length, length]`.
    bias: Tensor,
}

impl Tensors {
    pub(super) fn new(weights: &Weights, pooling: Pooling, device: &Device, precision: DType) -> Result<Self> {
        let carrier = Carrier { device, precision };
        let Weights { words, positions, norm, layers, heads, activation, distances } = weights;
        Ok(Self {
            words: carrier.tensor(words)?,
            positions: carrier.tensor(positions)?,
            numbers: Tensor::arange(0, 2 * positions.dim(0)? as u32, device)?,
            places: positions.dim(0)?,
            norm: carrier.norm(norm)?,
            layers: layers.iter().map(|layer| carrier.layer(layer, *heads)).collect::<Result<_>>()?,
            heads: *heads,
            pooling,
            activation: *activation,
            distances: distances.as_ref().map(|distances| carrier.tensor(distances)).transpose()?,
            vocabulary: words.dim(0)?,
            device: device.clone(),
            precision,
        })
    }

    /// The most tokens of a text, and how many different ids there are.
    pub(super) fn reads(&self) -> (usize, usize) {
        (self.places, self.vocabulary)
    }

    /// The pooled vectors of texts of at most `length` tokens, on the device.
    fn forward(&self, texts: &[&[u32]], length: usize) -> Result<Tensor> {
        let (ids, batch) = self.batch(texts, length)?;
        let tokens = batch.texts * length;
        let words = self.words.index_select(&ids, 0)?.reshape((batch.texts, length, ()))?;
        let x = words.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let mut x = self.norm.on_device(&x.reshape((tokens, ()))?)?;
        for layer in &self.layers {
            let attended = self.attend(&layer.projections.forward(&x)?, &batch)?;
            x = layer.attention_norm.on_device(&(layer.attention_output.forward(&attended)? + x)?)?;
            let inner = activate(self.activation, &x.matmul(&layer.up.weight)?, &layer.up.bias)?;
            x = layer.norm.on_device(&(layer.down.forward(&inner)? + x)?)?;
        }
        self.pool(&x.reshape((batch.texts, length, ()))?, &batch.keep)
    }

    /// Sends ids and lengths over as one piece, and makes the rest of them there.
    fn batch(&self, texts: &[&[u32]], length: usize) -> Result<(Tensor, Batch)> {
        let count = texts.len();
        let mut sent = vec![0; count * length + count];
        let (ids, lengths) = sent.split_at_mut(count * length);
        for ((text, row), sent_length) in texts.iter().zip(ids.chunks_exact_mut(length)).zip(lengths) {
            row[..text.len()].copy_from_slice(text);
            *sent_length = text.len() as u32;
        }
        let sent = Tensor::from_vec(sent, count * (length + 1), &self.device)?;
        let lengths = sent.narrow(0, count * length, count)?.reshape((count, 1))?;
        let places = self.numbers.narrow(0, 0, length)?;
        let keep = places.reshape((1, length))?.broadcast_lt(&lengths)?.to_dtype(DType::F32)?;
        let mask = keep.affine(-MASKED, MASKED)?.to_dtype(self.precision)?.reshape((count, 1, 1, length))?;
        let bias = match &self.distances {
            None => mask,
            Some(distances) => mask.broadcast_add(&self.by_distance(distances, length)?)?,
        };
        Ok((sent.narrow(0, 0, count * length)?, Batch { texts: count, length, keep, bias }))
    }

    /// `[heads, length, length]`: what a model adds for how far a key stands from a query.
    fn by_distance(&self, distances: &Tensor, length: usize) -> Result<Tensor> {
        // The column key's place − query's place + places − 1, of which only the middle ones occur in short texts.
        let columns = distances.narrow(1, self.places - length, 2 * length - 1)?;
        let keys = self.numbers.narrow(0, length - 1, length)?.reshape((1, length))?;
        let queries = self.numbers.narrow(0, 0, length)?.reshape((length, 1))?;
        let indexes = keys.broadcast_sub(&queries)?.flatten_all()?;
        columns.contiguous()?.index_select(&indexes, 1)?.reshape((self.heads, length, length))
    }

    /// Attention within each text, from `[tokens, 3 × size]` projections to `[tokens, size]`.
    fn attend(&self, projections: &Tensor, batch: &Batch) -> Result<Tensor> {
        let &Batch { texts, length, .. } = batch;
        let head = projections.dim(1)? / 3 / self.heads;
        let parts =
            projections.reshape((texts, length, 3, self.heads, head))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (queries, keys, values) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
        let products = queries.matmul(&keys.transpose(D::Minus1, D::Minus2)?)?.broadcast_add(&batch.bias)?;
        let mixed = softmax_last_dim(&products)?.matmul(&values)?;
        mixed.transpose(1, 2)?.reshape((texts * length, ()))
    }

    /// One f32 vector a text, from `[texts, length, size]`; padding has no part in it.
    fn pool(&self, x: &Tensor, keep: &Tensor) -> Result<Tensor> {
        if self.pooling == Pooling::Cls {
            return x.narrow(1, 0, 1)?.squeeze(1)?.to_dtype(DType::F32);
        }
        let x = x.to_dtype(DType::F32)?;
        let each = keep.unsqueeze(2)?;
        match self.pooling {
            Pooling::Max => x.broadcast_add(&each.affine(-MASKED, MASKED)?)?.max(1),
            _ => x.broadcast_mul(&each)?.sum(1)?.broadcast_div(&keep.sum_keepdim(1)?),
        }
    }

    /// As [`Engine::embed`], for texts that the network can read.
    fn embed_all(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let computed = cut(&lengths, self.places, self.heads).into_iter().map(|Padded { indexes, length }| {
            let batch: Vec<&[u32]> = indexes.iter().map(|&index| texts[index]).collect();
            Ok((indexes, self.forward(&batch, length)?))
        });
        let computed: Vec<(Vec<usize>, Tensor)> = computed.collect::<Result<_>>()?;
        let mut vectors = vec![Vec::new(); texts.len()];
        for (indexes, computed) in computed {
            for (index, vector) in indexes.into_iter().zip(computed.to_vec2::<f32>()?) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }
}

/// `f(x + bias)`.
fn activate(activation: Activation, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_add(bias)?;
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

impl Engine for Tensors {
    fn kernel(&self) -> String {
        let device = if self.device.is_cuda() {
            "cuda"
        } else if self.device.is_metal() {
            "metal"
        } else {
            "cpu tensors"
        };
        format!("{} {device}", self.precision.as_str())
    }

    fn embed(&mut self, batch: &[&[u32]]) -> std::result::Result<Vec<Vec<f32>>, EngineError> {
        // A device reads past the end where a processor would refuse: what is wrong is found here.
        check_not_empty(batch)?;
        let places = self.places;
        for ids in batch {
            if ids.len() > places {
                let reason = format!("a text has {} tokens, the network reads {places}", ids.len());
                return Err(EngineError::Tokenizer(reason));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
                let reason = format!("the token {id} is none of the network's {}", self.vocabulary);
                return Err(EngineError::Tokenizer(reason));
            }
        }
        Ok(self.embed_all(batch)?)
    }
}

/// Texts that are computed together, all as long as the longest.
#[derive(Debug, PartialEq, Eq)]
struct Padded {
    indexes: Vec<usize>,
    length: usize,
}

/// Cuts texts, none longer than `places`, into batches so that padding and batches together cost least.
///
/// Longest first, a batch is a run of neighbours. The cheapest way to batch all texts down to some length is the cheapest way down
/// to a greater one, and all those between padded to the longest of them: found for every length that occurs in turn.
fn cut(lengths: &[usize], places: usize, heads: usize) -> Vec<Padded> {
    let padded = |index: usize| lengths[index].next_multiple_of(LENGTH_STEP).min(places);
    let texts_max =
        |length: usize| (BATCH_TOKENS_MAX / length).min(BATCH_PRODUCTS_MAX / (heads * length * length)).max(1);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| Reverse(lengths[index]));
    let runs: Vec<&[usize]> = order.chunk_by(|&a, &b| padded(a) == padded(b)).collect();

    // For each count of runs: the least cost, and where the last stretch of one padded length starts.
    let mut best = vec![(0, 0)];
    for end in 1..=runs.len() {
        let mut texts = 0;
        let stretches = (0..end).rev().map(|start| {
            texts += runs[start].len();
            let length = padded(runs[start][0]);
            (best[start].0 + texts.div_ceil(texts_max(length)) * BATCH_COSTS_TOKENS + texts * length, start)
        });
        let cheapest = stretches.min().expect("there is a run before every end");
        best.push(cheapest);
    }
    let mut batches = Vec::new();
    let mut end = runs.len();
    while end > 0 {
        let start = best[end].1;
        let length = padded(runs[start][0]);
        let stretch = runs[start..end].concat();
        let cut = stretch.chunks(texts_max(length)).map(|indexes| Padded { indexes: indexes.to_vec(), length });
        batches.extend(cut);
        end = start;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lengths in tokens of the fixture's texts, cut as the default model cuts them.
    fn fixture_lengths() -> Vec<usize> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/texts.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let length = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["tokens"].as_u64().unwrap();
        text.lines().map(|line| (length(line) as usize).min(256)).collect()
    }

    fn waste(lengths: &[usize]) -> f64 {
        let computed: usize = cut(lengths, 512, 12).iter().map(|batch| batch.indexes.len() * batch.length).sum();
        1.0 - lengths.iter().sum::<usize>() as f64 / computed as f64
    }

    proptest! {
        #[test]
        fn every_text_is_in_exactly_one_batch_that_is_long_enough_and_within_bounds(
            lengths in prop::collection::vec(1usize..=300, 0..400), places in 300usize..600, heads in 1usize..32,
        ) {
            let batches = cut(&lengths, places, heads);
            let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.indexes.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for Padded { indexes, length } in batches {
                prop_assert!(length <= places && indexes.iter().all(|&index| lengths[index] <= length));
                prop_assert!(indexes.len() == 1 || indexes.len() * length <= BATCH_TOKENS_MAX);
            }
        }
    }

    #[test]
    fn padding_wastes_less_than_a_tenth_on_real_lengths() {
        let lengths = fixture_lengths();
        let all = waste(&lengths);
        assert!(all < 0.10, "{:.1} % of {} texts' tokens are padding", 100.0 * all, lengths.len());
    }

    #[test]
    fn what_is_added_for_a_distance_is_that_of_keys_place_minus_querys() {
        let (heads, places) = (2, 6);
        let matrix = |rows: usize, columns: usize| {
            Tensor::arange(0f32, (rows * columns) as f32, &Device::Cpu).unwrap().reshape((rows, columns)).unwrap()
        };
        let vector = || Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
        let columns = 2 * places - 1;
        let weights = Weights {
            words: matrix(5, 8),
            positions: matrix(places, 8),
            norm: Norm { weight: vector(), bias: vector(), epsilon: 1e-12 },
            layers: Vec::new(),
            heads,
            activation: Activation::Gelu,
            distances: Some(matrix(heads, columns)),
        };
        let tensors = Tensors::new(&weights, Pooling::Mean, &Device::Cpu, DType::F32).unwrap();
        for length in [1, 4, places] {
            let found = tensors.by_distance(tensors.distances.as_ref().unwrap(), length).unwrap();
            let found = found.to_vec3::<f32>().unwrap();
            for (head, query, key) in
                (0..heads * length * length).map(|n| (n / length / length, n / length % length, n % length))
            {
                let expected = head * columns + key + places - 1 - query;
                assert_eq!(found[head][query][key], expected as f32, "head {head}, from {query} to {key}");
            }
        }
    }

    #[test]
    fn texts_of_one_length_that_fit_are_one_batch() {
        assert_eq!(cut(&[9, 9, 9], 512, 12), [Padded { indexes: vec![0, 1, 2], length: 16 }]);
        // Products of queries and keys bound the long ones: 12 heads × 512² of 2²⁸ are 85 texts.
        let long = cut(&[512; 86], 512, 12);
        assert_eq!(long.iter().map(|batch| batch.indexes.len()).collect::<Vec<_>>(), [85, 1]);
    }
}
