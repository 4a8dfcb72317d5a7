//! Searches on a device: whether they answer as the processor does, how long they take, and what the device's memory would allow.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use half::f16;
use serde_json::{Value, json};
use vecmemo::domain::Key;
use vecmemo::index::{DeviceChoice, Filter, Index, Query, Row, Rows};

use super::Where;

/// Batches of a measurement that do not count.
const WARM_UPS: usize = 3;
/// What is copied to know the device's bandwidth.
const COPIED_BYTES: usize = 1 << 30;

#[derive(clap::Args)]
pub(super) struct Search {
    #[arg(long, value_enum)]
    device: Where,
    /// How many rows
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Values of a row
    #[arg(long, default_value_t = 384)]
    dims: usize,
    /// Queries at once
    #[arg(long, value_delimiter = ',', default_value = "1,32,1024")]
    batches: Vec<usize>,
    /// Hits of a query
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Queries whose answers are compared with the processor's
    #[arg(long, default_value_t = 200)]
    compared: usize,
    /// Time for each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// Rows by place, which are their keys too.
struct Made {
    dims: usize,
    values: Vec<f16>,
}

impl Rows for Made {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        for (index, key) in keys.iter().enumerate() {
            let mut place = [0; 4];
            place.copy_from_slice(&key.as_bytes()[..4]);
            found(index, 1, self.row(u32::from_be_bytes(place) as usize));
        }
        true
    }
}

impl Made {
    /// Vectors of length one in all directions, the same every time.
    fn new(rows: usize, dims: usize) -> Self {
        let mut values = vec![f16::ZERO; rows * dims];
        let share = rows.div_ceil(processors());
        thread::scope(|scope| {
            for (number, values) in values.chunks_mut(share * dims).enumerate() {
                scope.spawn(move || {
                    let mut random = Random(number as u64 + 1);
                    values.chunks_mut(dims).for_each(|row| {
                        let unit = random.unit(dims);
                        row.iter_mut().zip(unit).for_each(|(value, unit)| *value = f16::from_f32(unit));
                    });
                });
            }
        });
        Self { dims, values }
    }

    fn row(&self, place: usize) -> &[f16] {
        &self.values[place * self.dims..][..self.dims]
    }

    /// Puts all rows into an index; returns how many seconds it took.
    fn fill(&self, index: &Index) -> f64 {
        let started = Instant::now();
        let rows = self.values.len() / self.dims;
        let share = rows.div_ceil(processors());
        thread::scope(|scope| {
            for first in (0..rows).step_by(share) {
                scope.spawn(move || {
                    for place in first..rows.min(first + share) {
                        let mut key = [0; 32];
                        key[..4].copy_from_slice(&(place as u32).to_be_bytes());
                        index.set(Row {
                            place: place as u32,
                            key: Key::from_bytes(key),
                            sequence: 1,
                            namespace: 0,
                            created: 0,
                            expires: None,
                            unit: self.row(place),
                        });
                    }
                });
            }
        });
        started.elapsed().as_secs_f64()
    }

    /// Vectors near to rows, as questions are.
    fn queries(&self, count: usize) -> Vec<Vec<f32>> {
        let mut random = Random(0);
        let rows = self.values.len() / self.dims;
        let near = |number: usize| {
            let noise = random.unit(self.dims);
            let row = self.row(number * 7919 % rows);
            let mixed: Vec<f32> = row.iter().zip(noise).map(|(value, noise)| value.to_f32() + 0.7 * noise).collect();
            scaled(mixed)
        };
        (0..count).map(near).collect()
    }
}

struct Random(u64);

impl Random {
    fn unit(&mut self, dims: usize) -> Vec<f32> {
        let value = |_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        scaled((0..dims).map(value).collect())
    }
}

fn scaled(values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.into_iter().map(|value| value / length).collect()
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Search {
    pub(super) fn run(&self) -> Result<Value> {
        let choice = match self.device {
            Where::Cuda => DeviceChoice::Cuda,
            Where::Metal => DeviceChoice::Metal,
            Where::Cpu => DeviceChoice::CpuAsGpu,
        };
        let bandwidth = self.copy_bandwidth()?;
        let made = Arc::new(Made::new(self.rows, self.dims));
        let opening = Instant::now();
        let index = Index::new(self.dims).with_device(choice)?;
        let opened_s = opening.elapsed().as_secs_f64();
        let filled_s = made.fill(&index);
        let batches = self.batches.iter().map(|&batch| self.measure(&index, &made, batch, bandwidth));
        let batches = batches.collect::<Result<Vec<_>>>()?;
        let (equal, differing) = self.compare(&index, &made)?;
        Ok(json!({
            "rows": self.rows,
            "dims": self.dims,
            "k": self.k,
            "opened_s": opened_s,
            "filled_s": filled_s,
            "memory_bytes": index.memory_bytes(),
            "copy_bytes_per_second": bandwidth,
            "batches": batches,
            "queries_equal_to_the_processor": equal,
            "queries_different": differing,
            "faults": index.faults(),
        }))
    }

    /// Seconds of a batch, from vectors in this process's memory to hits with similarities.
    fn measure(&self, index: &Index, made: &Made, batch: usize, bandwidth: f64) -> Result<Value> {
        let vectors = made.queries(batch);
        let queries: Vec<Query<'_>> = vectors.iter().map(|vector| Query::new(vector, self.k)).collect();
        let (mut seconds, mut turns) = (Vec::new(), 0);
        let mut until = Instant::now();
        while turns <= WARM_UPS || Instant::now() < until {
            let started = Instant::now();
            let answer = index.answer(&queries, &Filter::all(0), made, true)?;
            ensure!(answer.hits.len() == batch, "a query was not answered");
            if turns >= WARM_UPS {
                seconds.push(started.elapsed().as_secs_f64());
            } else {
                until = Instant::now() + Duration::from_secs_f64(self.seconds);
            }
            turns += 1;
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        let read = (self.rows * self.dims * size_of::<f16>()) as f64;
        Ok(json!({
            "queries": batch,
            "seconds": median,
            "seconds_least": seconds[0],
            "turns": seconds.len(),
            "share_of_copy_bandwidth": read / median / bandwidth,
        }))
    }

    /// How many queries have the processor's hits, keys and similarities to the bit, and how many have not.
    fn compare(&self, index: &Index, made: &Made) -> Result<(usize, usize)> {
        let processor = Index::new(self.dims);
        made.fill(&processor);
        let vectors = made.queries(self.compared);
        let queries: Vec<Query<'_>> = vectors.iter().map(|vector| Query::new(vector, self.k)).collect();
        let filters = [Filter::all(0), Filter { created: 0..=7, ..Filter::all(0) }];
        let (mut equal, mut differing) = (0, 0);
        for filter in filters {
            let here = processor.answer(&queries, &filter, made, true)?;
            // One at a time, a few, and all: every kernel there is.
            for at_once in [1, 20, 60, queries.len().max(1)] {
                for (queries, here) in queries.chunks(at_once).zip(here.hits.chunks(at_once)) {
                    let there = index.answer(queries, &filter, made, true)?;
                    let name = there.path.device.name();
                    ensure!(self.device == Where::Cpu || name != "cpu", "the device did not answer");
                    for (here, there) in here.iter().zip(&there.hits) {
                        let same = here.len() == there.len()
                            && here
                                .iter()
                                .zip(there)
                                .all(|(a, b)| a.key == b.key && a.similarity.to_bits() == b.similarity.to_bits());
                        if same { equal += 1 } else { differing += 1 }
                    }
                }
            }
        }
        Ok((equal, differing))
    }

    /// Bytes read and written a second, copying within the device's memory.
    fn copy_bandwidth(&self) -> Result<f64> {
        let (device, bytes) = match self.device {
            Where::Cuda => (Device::new_cuda_with_stream(0)?, COPIED_BYTES),
            Where::Metal => (Device::new_metal(0)?, COPIED_BYTES),
            Where::Cpu => (Device::Cpu, COPIED_BYTES / 16),
        };
        let from = Tensor::zeros(bytes / size_of::<f32>(), DType::F32, &device)?;
        let mut rates = Vec::new();
        for _ in 0..12 {
            let started = Instant::now();
            let copy = from.copy()?;
            device.synchronize()?;
            rates.push(2.0 * bytes as f64 / started.elapsed().as_secs_f64());
            drop(copy);
        }
        rates.sort_by(f64::total_cmp);
        rates.last().copied().context("nothing was measured")
    }
}
