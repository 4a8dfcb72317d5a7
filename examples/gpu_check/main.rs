//! What a GPU computes, and how fast: the part of `scripts/gpu-check` that is ours. Prepares a model for the journey, and
//! measures on the machine that has the GPU; answers JSON.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use vecmemo::domain::{Truncation, TruncationDirection};
use vecmemo::engine::{self, DeviceChoice, Model, Options, Precision, Sources};

#[path = "../../tests/it/support/golden.rs"]
#[allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "shared with the tests")]
mod golden;
mod search;

/// How many texts of the fixture are computed at once: what the service's batches would hold with a GPU.
const TEXTS_AT_ONCE: usize = 1024;

/// What the model reads of a text.
type Ids = Box<[u32]>;

#[derive(Parser)]
enum Command {
    /// Copy a model with its weights in f16: half the bytes, and what the GPU computes with
    Pack { from: PathBuf, to: PathBuf },
    /// Measure on a device
    Measure(Measure),
    /// Search on a device
    Search(search::Search),
}

#[derive(clap::Args)]
struct Measure {
    /// The model's folder
    #[arg(long)]
    model: PathBuf,
    #[arg(long, value_enum)]
    device: Where,
    /// Folder of the fixture: `texts.jsonl` and `golden/all-MiniLM-L6-v2.npy`
    #[arg(long, default_value = "tests/data")]
    data: PathBuf,
    /// Lengths of made-up texts, in tokens
    #[arg(long, value_delimiter = ',', default_value = "16,32,64,128,256")]
    lengths: Vec<usize>,
    /// Texts at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128,512,2048")]
    batches: Vec<usize>,
    /// Compare every so many-th text of the fixture only
    #[arg(long, default_value_t = 1)]
    step: usize,
    /// Time for each measurement
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Where {
    Cuda,
    Metal,
    /// The encoder for GPUs, on the processor, in f32: tries this program out
    Cpu,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Pack { from, to } => pack(&from, &to),
        Command::Measure(measure) => writeln!(std::io::stdout(), "{}", measure.run()?).map_err(Into::into),
        Command::Search(search) => writeln!(std::io::stdout(), "{}", search.run()?).map_err(Into::into),
    }
}

fn pack(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let target = to.join(file.strip_prefix(from)?);
        std::fs::create_dir_all(target.parent().context("a file has a folder")?)?;
        if file.extension().is_none_or(|extension| extension != "safetensors") {
            std::fs::copy(&file, &target).with_context(|| format!("cannot copy {}", file.display()))?;
            continue;
        }
        let half = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
            let tensor = if tensor.dtype() == DType::F32 { tensor.to_dtype(DType::F16)? } else { tensor };
            Ok((name, tensor))
        };
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
        let tensors: HashMap<String, Tensor> = tensors.into_iter().map(half).collect::<Result<_>>()?;
        candle_core::safetensors::save(&tensors, &target)?;
    }
    Ok(())
}

/// The files of a model, those that only people read left out.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| ["json", "safetensors", "txt"].iter().any(|e| extension == *e))
        {
            found.push(path);
        }
    }
    Ok(found)
}

impl Measure {
    fn run(&self) -> Result<Value> {
        let started = Instant::now();
        let (choice, precision) = match self.device {
            Where::Cuda => (DeviceChoice::Cuda, Precision::Half),
            Where::Metal => (DeviceChoice::Metal, Precision::Half),
            Where::Cpu => (DeviceChoice::CpuAsGpu, Precision::F32),
        };
        let mut model = self.open(choice, precision)?;
        let opened_s = started.elapsed().as_secs_f64();
        let (texts, ids) = self.texts(&model)?;
        let vectors = embed(&mut model, &ids)?;
        let golden = golden::npy_rows(&self.data.join("golden/all-MiniLM-L6-v2.npy"))
            .into_iter()
            .step_by(self.step)
            .collect::<Vec<_>>();
        let mut reference = self.open(DeviceChoice::Cpu, Precision::F32)?;
        let by_processor = embed(&mut reference, &ids)?;
        drop(reference);
        let grid = self.grid(&mut model)?;
        let report = json!({
            "device": model.card.device.get().as_str(),
            "kernel": &*model.card.device.kernel(),
            "model": model.card.name,
            "opened_s": opened_s,
            "texts": texts.len(),
            "tokens": ids.iter().map(|ids| ids.len()).sum::<usize>(),
            "cosine_to_sentence_transformers_f32": cosines(&vectors, &golden)?,
            "cosine_to_our_cpu_f32_of_these_weights": cosines(&vectors, &by_processor)?,
            "matmul_flops": self.matmul_flops()?,
            "flops_of_a_text": self.lengths.iter().map(|&length| Ok((length.to_string(), self.flops(length)?))).collect::<Result<HashMap<_, _>>>()?,
            "grid": grid,
            "fixture_texts_per_second": self.fixture(&mut model, &texts)?,
            "device_at_the_end": model.card.device.get().as_str(),
        });
        Ok(report)
    }

    fn open(&self, device: DeviceChoice, precision: Precision) -> Result<Model> {
        let name = format!("{}/", self.model.canonicalize().context("the model's folder is not there")?.display());
        let options = Options { device, precision, ..Options::default() };
        Ok(engine::open(&name, &Sources::default(), &options)?)
    }

    /// The fixture's texts and their ids.
    fn texts(&self, model: &Model) -> Result<(Vec<String>, Vec<Ids>)> {
        let texts = golden::texts(&self.data.join("texts.jsonl"));
        let texts: Vec<String> = texts.into_iter().step_by(self.step).map(|fixture| fixture.text).collect();
        let ids = tokenize(model, &texts)?;
        Ok((texts, ids))
    }

    /// Texts a second, from ids to vectors, by length and number.
    fn grid(&self, model: &mut Model) -> Result<Vec<Value>> {
        let mut grid = Vec::new();
        for &length in &self.lengths {
            for &batch in &self.batches {
                if self.device == Where::Cpu && batch * length > 2048 {
                    continue;
                }
                let ids: Vec<Vec<u32>> = (0..batch).map(|text| made_up(text, length)).collect();
                let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
                let seconds = self.median_seconds(|| {
                    model.engine.embed(&ids)?;
                    Ok(())
                })?;
                grid.push(json!({ "length": length, "batch": batch, "texts_per_second": batch as f64 / seconds }));
            }
        }
        Ok(grid)
    }

    /// The fixture's texts from text to vector, the next ones tokenised while the device computes, as in the service.
    fn fixture(&self, model: &mut Model, texts: &[String]) -> Result<f64> {
        let repeats = if self.device == Where::Cpu { 1 } else { 4096_usize.div_ceil(texts.len()) };
        let texts: Vec<&str> = texts.iter().map(String::as_str).cycle().take(texts.len() * repeats).collect();
        let tokenizer = std::sync::Arc::clone(&model.tokenizer);
        let truncation = truncation(model);
        let seconds = self.median_seconds(|| {
            let (send, receive) = std::sync::mpsc::sync_channel(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let send = send;
                    for texts in texts.chunks(TEXTS_AT_ONCE) {
                        if send.send(tokenizer.tokenize(texts, "", truncation)).is_err() {
                            return;
                        }
                    }
                });
                for tokens in receive {
                    let tokens = tokens?;
                    model.engine.embed(&tokens.iter().map(|tokens| &*tokens.ids).collect::<Vec<_>>())?;
                }
                Ok(())
            })
        })?;
        Ok(texts.len() as f64 / seconds)
    }

    /// The device's rate for one large multiplication in the precision of the model.
    fn matmul_flops(&self) -> Result<f64> {
        let (device, size, dtype) = match self.device {
            Where::Cuda => (Device::new_cuda_with_stream(0)?, 8192, DType::F16),
            Where::Metal => (Device::new_metal(0)?, 4096, DType::F16),
            Where::Cpu => (Device::Cpu, 1024, DType::F32),
        };
        let random = || Tensor::randn(0f32, 1f32, (size, size), &device)?.to_dtype(dtype);
        let (a, b) = (random()?, random()?);
        let seconds = self.median_seconds(|| {
            let product = a.matmul(&b)?;
            device.synchronize()?;
            drop(product);
            Ok(())
        })?;
        Ok(2.0 * (size as f64).powi(3) / seconds)
    }

    /// Multiplications and additions of a text, padding and everything but the matrices left out.
    fn flops(&self, length: usize) -> Result<f64> {
        let config: Value = serde_json::from_slice(&std::fs::read(self.model.join("config.json"))?)?;
        let number = |key: &str| config[key].as_f64().with_context(|| format!("config.json has no {key}"));
        let (size, inner, layers) =
            (number("hidden_size")?, number("intermediate_size")?, number("num_hidden_layers")?);
        let length = length as f64;
        Ok(layers * (2.0 * length * (4.0 * size * size + 2.0 * size * inner) + 4.0 * length * length * size))
    }

    /// After two turns that do not count.
    fn median_seconds(&self, mut turn: impl FnMut() -> Result<()>) -> Result<f64> {
        if self.device != Where::Cpu {
            turn()?;
            turn()?;
        }
        let (mut seconds, until) = (Vec::new(), Instant::now() + Duration::from_secs_f64(self.seconds));
        while seconds.is_empty() || Instant::now() < until {
            let started = Instant::now();
            turn()?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

fn truncation(model: &Model) -> Truncation {
    Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens }
}

fn tokenize(model: &Model, texts: &[String]) -> Result<Vec<Ids>> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let tokens = model.tokenizer.tokenize(&texts, "", truncation(model))?;
    Ok(tokens.into_iter().map(|tokens| tokens.ids).collect())
}

fn embed(model: &mut Model, ids: &[Ids]) -> Result<Vec<Vec<f32>>> {
    Ok(model.engine.embed(&ids.iter().map(|ids| &**ids).collect::<Vec<_>>())?)
}

/// Ids as of a text of that length, not the same for every text.
fn made_up(text: usize, length: usize) -> Vec<u32> {
    (0..length).map(|at| 1000 + ((text * 104_729 + at * 7919) % 20_000) as u32).collect()
}

/// The least and the mean.
fn cosines(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Result<Value> {
    if found.len() != expected.len() {
        bail!("{} vectors are to be compared with {}", found.len(), expected.len());
    }
    let cosines: Vec<f64> = found.iter().zip(expected).map(|(a, b)| golden::cosine(a, b)).collect();
    // Not a number is the least there is.
    let least = cosines.iter().fold(1.0, |least, &cosine| if cosine >= least { least } else { cosine.max(-1.0) });
    Ok(json!({ "min": least, "mean": cosines.iter().sum::<f64>() / cosines.len() as f64 }))
}
