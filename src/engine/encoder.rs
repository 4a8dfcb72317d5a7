//! A BERT-shaped encoder on the CPU, on packed tokens.
//!
//! Nothing is padded: all tokens of a span of texts are the rows of one matrix. Rows are computed in blocks that fit a
//! processor's own cache, each block by one thread from layer to layer; only attention looks past the block, at the keys and
//! values of its texts, which all blocks have finished by then:
//!
//! ```text
//! each block:  words + positions ─► norm ─► projections ┐
//!                                                       ├ all blocks done
//! each block:  attention ─► output + x ─► norm ─► up, activation, down + x ─► norm ─► next layer's projections ┐
//!                                                       ├ all blocks done, and so on                           │
//! ```
//!
//! Spans go side by side, and a thread that has no span of its own takes blocks of another's: so threads share the work of one
//! text as well as of many, and where there are many none waits at the end of a layer. Every row's arithmetic is its own: a
//! text's vector is the same, bit for bit, in any batch, with any number of threads and any size of block.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{
    Arithmetic, Attention, AttentionScratch, BLOCK_INPUTS, Into, Kernel, Lines, Matrix, Rounded, Start,
};
use super::pooling::pool;
use super::threads::Threads;
use super::weights::{self, LayerWeights, Weights, values};
use super::{Engine, EngineError, check_not_empty};
use crate::domain::Pooling;

/// Changed when this encoder's arithmetic changes by more than its precision class allows: a part of every fingerprint.
pub(super) const NUMERICS_VERSION: &str = "packed-bert-f32-1";

/// Tokens that go through the layers together. More would read the weights less often, push what is read between two layers
/// out of the cache that all processors share, and leave threads without a span.
const SPAN_TOKENS: usize = 512;

/// The most rows of a block: those that are tried, the first one until then.
const BLOCK_ROWS: [usize; 3] = [96, 192, 384];

/// How often each is tried.
const TUNING_RUNS: usize = 3;

/// A loaded encoder.
pub(super) struct Encoder {
    kernel: &'static Kernel,
    arithmetic: Arithmetic,
    words: Vec<f32>,
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    size: usize,
    heads: usize,
    activation: super::kernel::Activation,
    distances: Option<Vec<f32>>,
    pooling: Pooling,
    threads: Threads,
    /// The most rows of a block.
    block_rows: usize,
    scratch: Vec<Mutex<Scratch>>,
}

struct Layer {
    /// Queries (scaled), keys and values side by side.
    projections: Matrix,
    attention_output: Matrix,
    attention_norm: Norm,
    up: Matrix,
    down: Matrix,
    norm: Norm,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

/// What a thread needs for one block.
struct Scratch {
    attended: Lines<f32>,
    sum: Lines<f32>,
    inner: Lines<f32>,
    rounded: Rounded,
    rounded_inner: Rounded,
    attention: AttentionScratch,
}

/// Where a text's tokens are among a span's rows.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    length: usize,
}

impl Norm {
    fn new(norm: &weights::Norm) -> candle_core::Result<Self> {
        Ok(Self { weight: values(&norm.weight)?, bias: values(&norm.bias)?, epsilon: norm.epsilon })
    }

    fn apply(&self, kernel: &Kernel, x: &[f32], out: &mut [f32]) {
        kernel.normalize(x, out, &self.weight, &self.bias, self.epsilon);
    }
}

impl Layer {
    fn new(layer: &LayerWeights, heads: usize, kernel: &Kernel, arithmetic: Arithmetic) -> candle_core::Result<Self> {
        let pack = |linear: &weights::Linear| -> candle_core::Result<Matrix> {
            Ok(kernel.pack(&values(&linear.weight)?, &values(&linear.bias)?, arithmetic))
        };
        let scale = 1.0 / ((layer.query.bias.elem_count() / heads) as f32).sqrt();
        let scaled = |tensor: &Tensor| -> candle_core::Result<Vec<f32>> {
            Ok(values(tensor)?.into_iter().map(|value| value * scale).collect())
        };
        let mut weight = scaled(&layer.query.weight)?;
        let mut bias = scaled(&layer.query.bias)?;
        for linear in [&layer.key, &layer.value] {
            weight.extend(values(&linear.weight)?);
            bias.extend(values(&linear.bias)?);
        }
        Ok(Self {
            projections: kernel.pack(&weight, &bias, arithmetic),
            attention_output: pack(&layer.attention_output)?,
            attention_norm: Norm::new(&layer.attention_norm)?,
            up: pack(&layer.up)?,
            down: pack(&layer.down)?,
            norm: Norm::new(&layer.norm)?,
        })
    }
}

impl Scratch {
    fn new() -> Self {
        let lines = || Lines::zeroed(0);
        Self {
            attended: lines(),
            sum: lines(),
            inner: lines(),
            rounded: Rounded::new(),
            rounded_inner: Rounded::new(),
            attention: AttentionScratch::new(),
        }
    }
}

impl Encoder {
    /// Packs weights for the arithmetic asked for, and the best kernel there is.
    ///
    /// # Errors
    /// When a tensor has not the shape that the others ask for.
    pub(super) fn new(
        weights: &Weights,
        pooling: Pooling,
        arithmetic: Arithmetic,
        threads: Threads,
    ) -> candle_core::Result<Self> {
        let kernel = Kernel::supported()[0];
        let (size, heads) = (weights.size()?, weights.heads);
        let layer = |layer: &LayerWeights| Layer::new(layer, heads, kernel, arithmetic);
        Ok(Self {
            kernel,
            arithmetic,
            words: values(&weights.words)?,
            positions: values(&weights.positions)?,
            norm: Norm::new(&weights.norm)?,
            layers: weights.layers.iter().map(layer).collect::<candle_core::Result<_>>()?,
            size,
            heads,
            activation: weights.activation,
            distances: weights.distances.as_ref().map(values).transpose()?,
            pooling,
            block_rows: BLOCK_ROWS[0],
            scratch: (0..threads.count()).map(|_| Mutex::new(Scratch::new())).collect(),
            threads,
        })
    }

    /// How it multiplies.
    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// The most rows of a block.
    pub(super) fn block_rows(&self) -> usize {
        self.block_rows
    }

    /// Sets the most rows of a block.
    pub(super) fn set_block_rows(&mut self, rows: usize) {
        self.block_rows = rows.max(1);
    }

    /// Sets the most rows of a block to what goes fastest through one layer here and now, on texts of these ids.
    pub(super) fn tune(&mut self, texts: &[&[u32]]) {
        let (ids, lengths) = (texts.concat(), texts.iter().map(|ids| ids.len()).collect::<Vec<_>>());
        let tokens: usize = lengths.iter().sum();
        let mut best = Duration::MAX;
        for rows in BLOCK_ROWS {
            // Fewer would make blocks of the same size.
            if rows > BLOCK_ROWS[0] && rows * self.threads.count() > tokens {
                break;
            }
            let before = std::mem::replace(&mut self.block_rows, rows);
            let mut took = Duration::MAX;
            for _ in 0..TUNING_RUNS {
                let started = Instant::now();
                self.threads.run(|| self.span(&ids, &lengths, &self.layers[..1]));
                took = took.min(started.elapsed());
            }
            if took < best {
                best = took;
            } else {
                self.block_rows = before;
            }
        }
    }

    /// The pooled vectors of texts, one after the other.
    fn forward(&self, ids: &[u32], lengths: &[usize]) -> Vec<f32> {
        let mut spans = Vec::new();
        let mut rest = (ids, lengths);
        while !rest.1.is_empty() {
            let mut tokens = 0;
            let fits = rest.1.iter().take_while(|&&length| {
                tokens += length;
                tokens <= SPAN_TOKENS
            });
            let texts = fits.count().max(1);
            let (lengths, lengths_after) = rest.1.split_at(texts);
            let (ids, ids_after) = rest.0.split_at(lengths.iter().sum());
            spans.push((ids, lengths));
            rest = (ids_after, lengths_after);
        }
        let pooled: Vec<Vec<f32>> =
            spans.par_iter().map(|(ids, lengths)| self.span(ids, lengths, &self.layers)).collect();
        pooled.concat()
    }

    /// How many rows a block of a span has: blocks of like size, as many as threads or a multiple of them.
    fn rows_of_block(&self, rows: usize) -> usize {
        let threads = self.threads.count();
        let blocks = rows.div_ceil(self.block_rows).next_multiple_of(threads);
        rows.div_ceil(blocks).next_multiple_of(self.kernel.rows)
    }

    /// The pooled vectors of a few texts, through the layers given.
    fn span(&self, ids: &[u32], lengths: &[usize], layers: &[Layer]) -> Vec<f32> {
        let (rows, size) = (ids.len(), self.size);
        let mut places = Vec::with_capacity(lengths.len());
        let mut first = 0;
        for &length in lengths {
            places.push(Place { first, length });
            first += length;
        }
        let block = self.rows_of_block(rows);
        let mut x = vec![0.0; rows * size];
        // The next layer's projections are made while other blocks still read this one's.
        let mut projections =
            [vec![0.0; rows * 3 * size], vec![0.0; if layers.len() > 1 { rows * 3 * size } else { 0 }]];
        let [now, next] = &mut projections;
        let (mut now, mut next) = (now, next);

        x.par_chunks_mut(block * size).zip(now.par_chunks_mut(block * 3 * size)).enumerate().for_each(
            |(index, (x, out))| {
                self.with_scratch(|scratch| {
                    self.embed_rows(ids, &places, index * block, x, scratch);
                    self.project(&layers[0], x, out, scratch);
                });
            },
        );
        for (index, layer) in layers.iter().enumerate() {
            let following = layers.get(index + 1);
            let all = now.as_slice();
            let blocks = x.par_chunks_mut(block * size).enumerate();
            match following {
                Some(following) => {
                    blocks.zip(next.par_chunks_mut(block * 3 * size)).for_each(|((index, x), out)| {
                        self.with_scratch(|scratch| {
                            self.layer(layer, all, &places, index * block, x, scratch);
                            self.project(following, x, out, scratch);
                        });
                    });
                }
                None => blocks.for_each(|(index, x)| {
                    self.with_scratch(|scratch| self.layer(layer, all, &places, index * block, x, scratch));
                }),
            }
            std::mem::swap(&mut now, &mut next);
        }
        let pooled = |place: &Place| pool(&x[place.first * size..][..place.length * size], size, self.pooling);
        places.iter().flat_map(pooled).collect()
    }

    fn with_scratch(&self, work: impl FnOnce(&mut Scratch)) {
        let thread = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
        work(&mut self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Words and positions of the rows from `first` on, normalised.
    fn embed_rows(&self, ids: &[u32], places: &[Place], first: usize, x: &mut [f32], scratch: &mut Scratch) {
        let size = self.size;
        scratch.sum.reserve(x.len());
        let rows = first..first + x.len() / size;
        for place in overlapping(places, &rows) {
            let own = rows.start.max(place.first)..rows.end.min(place.first + place.length);
            for (row, &id) in own.clone().zip(&ids[own]) {
                let word = &self.words[id as usize * size..][..size];
                let position = &self.positions[(row - place.first) * size..][..size];
                let out = &mut scratch.sum[(row - first) * size..][..size];
                for ((out, word), position) in out.iter_mut().zip(word).zip(position) {
                    *out = word + position;
                }
            }
        }
        self.norm.apply(self.kernel, &scratch.sum[..x.len()], x);
    }

    fn project(&self, layer: &Layer, x: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let to = Into { start: Start::Zero, bias: true, activation: None, out };
        self.kernel.multiply(&layer.projections, x, x.len() / self.size, &mut scratch.rounded, to);
    }

    /// One layer, from the projections of all rows, for the rows from `first` on.
    fn layer(
        &self,
        layer: &Layer,
        projections: &[f32],
        places: &[Place],
        first: usize,
        x: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (kernel, size) = (self.kernel, self.size);
        let rows = x.len() / size;
        let Scratch { attended, sum, inner, rounded, rounded_inner, attention } = scratch;
        attended.reserve(x.len());
        sum.reserve(x.len());
        inner.reserve(rows * BLOCK_INPUTS);

        let wanted = first..first + rows;
        let head_size = size / self.heads;
        for place in overlapping(places, &wanted) {
            let own = wanted.start.max(place.first)..wanted.end.min(place.first + place.length);
            for head in 0..self.heads {
                let of_head = self.distances.as_deref().map(|distances| {
                    let length = distances.len() / self.heads;
                    &distances[head * length..][..length]
                });
                let attention_of_head = Attention {
                    projections: &projections[place.first * 3 * size..][..place.length * 3 * size],
                    size,
                    head,
                    head_size,
                    first: own.start - place.first,
                    count: own.len(),
                    distances: of_head,
                    out: &mut attended[(own.start - first) * size..(own.end - first) * size],
                };
                kernel.attend(attention_of_head, attention);
            }
        }
        let sum = &mut sum[..x.len()];
        let to = Into { start: Start::Rows(x), bias: true, activation: None, out: &mut *sum };
        kernel.multiply(&layer.attention_output, &attended[..rows * size], rows, rounded, to);
        layer.attention_norm.apply(kernel, sum, x);

        // A part of the inner vectors at a time: made, and taken into the sum, while it is in the cache.
        kernel.round(&layer.up, x, rows, rounded);
        for part in 0..layer.down.blocks.len() {
            let outputs = part * BLOCK_INPUTS..layer.up.outputs.min((part + 1) * BLOCK_INPUTS);
            let width = outputs.len();
            let inner = &mut inner[..rows * width];
            self.inner_part(&layer.up, outputs, x, rows, rounded, inner);
            kernel.round_block(&layer.down, part, inner, width, rows, rounded_inner);
            let start = if part == 0 { Start::Rows(&*x) } else { Start::Result };
            let to = Into { start, bias: part == 0, activation: None, out: &mut *sum };
            kernel.multiply_rounded(&layer.down, part, 0..size, inner, width, rows, rounded_inner, to);
        }
        layer.norm.apply(kernel, sum, x);
    }

    /// `activation(up(x))`, some of its values.
    fn inner_part(
        &self,
        up: &Matrix,
        outputs: Range<usize>,
        x: &[f32],
        rows: usize,
        rounded: &Rounded,
        out: &mut [f32],
    ) {
        let last = up.blocks.len() - 1;
        for block in 0..=last {
            let to = Into {
                start: if block == 0 { Start::Zero } else { Start::Result },
                bias: block == 0,
                activation: (block == last).then_some(self.activation),
                out: &mut *out,
            };
            let x = &x[block * BLOCK_INPUTS..];
            self.kernel.multiply_rounded(up, block, outputs.clone(), x, self.size, rows, rounded, to);
        }
    }
}

/// The texts that have some of the rows. They stand in order.
fn overlapping<'a>(places: &'a [Place], rows: &Range<usize>) -> &'a [Place] {
    let from = places.partition_point(|place| place.first + place.length <= rows.start);
    let to = places.partition_point(|place| place.first < rows.end);
    &places[from..to]
}

/// The whole encoder as one operation on token ids.
struct Forward<'a> {
    encoder: &'a Encoder,
    lengths: &'a [usize],
}

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "packed-encoder"
    }

    fn cpu_fwd(&self, ids: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (CpuStorage::U32(ids), Some((start, end))) = (ids, layout.contiguous_offsets()) else {
            bail!("token ids are contiguous u32");
        };
        let Encoder { size, words, positions, threads, .. } = self.encoder;
        let ids = &ids[start..end];
        if let Some(id) = ids.iter().find(|&&id| (id as usize + 1) * size > words.len()) {
            bail!("the model has no token {id}: it has {}", words.len() / size);
        }
        if let Some(length) = self.lengths.iter().find(|&&length| length * size > positions.len()) {
            bail!("a text has {length} tokens, the model reads {}", positions.len() / size);
        }
        let pooled = threads.run(|| self.encoder.forward(ids, self.lengths));
        Ok((CpuStorage::F32(pooled), (self.lengths.len(), *size).into()))
    }
}

impl Engine for Encoder {
    fn kernel(&self) -> String {
        let arithmetic = match self.arithmetic {
            Arithmetic::F32 => "f32",
            Arithmetic::I16 => "i16",
            Arithmetic::I8 => "i8",
        };
        format!("{arithmetic} {}", self.kernel.name)
    }

    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        check_not_empty(batch)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let lengths: Vec<usize> = batch.iter().map(|ids| ids.len()).collect();
        let ids = Tensor::from_vec(batch.concat(), lengths.iter().sum::<usize>(), &Device::Cpu)?;
        let pooled = ids.apply_op1_no_bwd(&Forward { encoder: self, lengths: &lengths })?;
        Ok(pooled.to_vec2()?)
    }
}
