//! Which arithmetic the CPU computes a model in: as asked, or the fastest that is as good as f32 for this very model.
//!
//! What is fastest is measured, and two measurements need not agree: so it is chosen once for as long as the process runs,
//! and a model that is loaded again computes what it computed before, to the last bit.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::encoder::Encoder;
use super::kernel::Arithmetic;
use super::threads::Threads;
use super::weights::Weights;
use super::{Engine, EngineError, Options, Precision, Tokenizer};
use crate::domain::{Pooling, Truncation, TruncationDirection};

/// What every vector of the class `f32` keeps to: its cosine with the vector of f32 arithmetic.
pub(super) const COSINE_MIN: f64 = 0.9999;

/// Texts that a model's precision is measured on: of several lengths, languages and kinds, for want of the user's own.
const PROBES: [&str; 16] = [
    "hello",
    "How do I reset my password?",
    "The quick brown fox jumps over the lazy dog.",
    "ERROR 2026-03-01T12:00:07Z worker[42]: connection reset by peer (os error 104), retrying in 250 ms",
    "fn main() { let total: u64 = (1..=10).filter(|n| n % 2 == 0).sum(); println!(\"{total}\"); }",
    "Der Vertrag verlängert sich um ein weiteres Jahr, sofern er nicht drei Monate vor Ablauf gekündigt wird.",
    "La révolution industrielle transforma en profondeur les villes, les campagnes et la vie de ceux qui y travaillaient.",
    "東京は日本の首都であり、世界最大級の都市圏を形成している。",
    "Каждый день в порт приходят десятки судов с зерном, лесом и металлом.",
    "{\"id\": 90210, \"status\": \"shipped\", \"items\": [{\"sku\": \"A-17\", \"qty\": 3, \"price\": 12.50}], \"total\": 37.5}",
    "Patients who received 20 mg daily had a 31% lower risk (95% CI 0.58 to 0.82; p < 0.001) than those given placebo.",
    "!!! ??? ... --- *** ### $$$ 1234567890 ((())) <<>> @@ ~~ ^^",
    "Preheat the oven to 180 °C. Beat the butter with the sugar until pale, add the eggs one at a time, then fold in the \
     flour and a pinch of salt. Bake for forty minutes, or until a skewer comes out clean, and let the cake cool in its tin.",
    "A cache keeps the results of earlier work so that the same question need not be answered twice. What makes one useful is \
     not only that it is fast but that it is right: an answer that was computed for another question, by another program or \
     from data that have changed since is worse than no answer at all, because nobody will look for the mistake there.",
    "The committee, having considered the report of the working group and the comments of its members, resolved to extend the \
     period of consultation until the end of June, to invite written submissions from all parties concerned, and to ask the \
     secretariat for a revised estimate of the costs, which should take account of inflation, of the fall in the number of \
     participants, and of the savings expected from the new building; the matter would then be brought before the council.",
    "It was late in the evening when the train came to a stop between two stations. Nobody knew why. The lights went out, came \
     back, and went out again; a child began to cry, somebody laughed, and an old man by the window unwrapped a sandwich as if \
     he had been waiting for this. Outside there was nothing to be seen but the snow, which lay on the fields, on the hedges \
     and on the roofs of a few houses far off, and shone a little, although there was no moon. After half an hour the guard \
     came through with a lamp. He said that a tree had fallen on the line, that men were on their way to clear it, and that \
     there was tea in the last carriage for those who wanted some. Most people did, and so they met.",
];

/// What measuring a kind of arithmetic came to.
struct Measured {
    vectors: Vec<Vec<f32>>,
    took: Duration,
}

/// What was found to be best for a model here.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    arithmetic: Arithmetic,
    block_rows: usize,
}

/// Makes the encoder that the options ask for: as it was chosen before, or as it is then chosen.
///
/// # Errors
/// When a tensor has not the shape that others ask for, threads cannot be had, or the precision asked for cannot be kept.
pub(super) fn encoder(
    weights: &Weights,
    pooling: Pooling,
    options: &Options,
    tokenizer: &dyn Tokenizer,
    max_tokens: usize,
    chosen: &OnceLock<Choice>,
) -> Result<Encoder, EngineError> {
    let make = |arithmetic| -> Result<Encoder, EngineError> {
        let threads = Threads::to_compute(options)?;
        Ok(Encoder::new(weights, pooling, arithmetic, threads)?)
    };
    if let Some(&Choice { arithmetic, block_rows }) = chosen.get() {
        let mut encoder = make(arithmetic)?;
        encoder.set_block_rows(block_rows);
        return Ok(encoder);
    }
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens };
    let probes: Vec<Box<[u32]>> =
        tokenizer.tokenize(&PROBES, "", truncation)?.into_iter().map(|tokens| tokens.ids).collect();
    let probes: Vec<&[u32]> = probes.iter().map(|ids| &**ids).collect();
    let mut encoder = match options.precision {
        Precision::F32 => make(Arithmetic::F32)?,
        Precision::Int8 => make(Arithmetic::I8)?,
        Precision::Auto | Precision::Half => half_or_exact(make, options.precision, &probes)?,
    };
    match options.chunk_tokens {
        Some(rows) => encoder.set_block_rows(rows),
        None => encoder.tune(&probes),
    }
    // Whoever chose at the same time chose for an encoder of its own: the first choice stands for those to come.
    let _ = chosen.set(Choice { arithmetic: encoder.arithmetic(), block_rows: encoder.block_rows() });
    Ok(encoder)
}

/// The encoder in 16-bit arithmetic if that is close enough to f32, and, unless it was asked for, faster; else in f32.
fn half_or_exact(
    make: impl Fn(Arithmetic) -> Result<Encoder, EngineError>,
    asked: Precision,
    probes: &[&[u32]],
) -> Result<Encoder, EngineError> {
    let mut half = make(Arithmetic::I16)?;
    let measured = measure(&mut half, probes)?;
    let mut exact = make(Arithmetic::F32)?;
    let reference = measure(&mut exact, probes)?;
    let cosine = least_cosine(&reference.vectors, &measured.vectors);
    let (f32_ms, i16_ms) = (reference.took.as_secs_f64() * 1e3, measured.took.as_secs_f64() * 1e3);
    tracing::info!(cosine, f32_ms, i16_ms, "measured 16-bit arithmetic against f32");
    // Not "less than": a cosine that is no number is not good either.
    let is_good = cosine >= COSINE_MIN;
    match asked {
        Precision::Half if !is_good => Err(EngineError::Precision { cosine, least: COSINE_MIN }),
        Precision::Half => Ok(half),
        _ if is_good && measured.took < reference.took => Ok(half),
        _ => Ok(exact),
    }
}

fn measure(engine: &mut Encoder, probes: &[&[u32]]) -> Result<Measured, EngineError> {
    // The first time touches memory that the second finds.
    let vectors = engine.embed(probes)?;
    let started = Instant::now();
    engine.embed(probes)?;
    Ok(Measured { vectors, took: started.elapsed() })
}

/// The least cosine between vectors and their counterparts; not a number if one is none.
pub(super) fn least_cosine(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    a.iter()
        .zip(b)
        .map(cosine)
        .reduce(|least, cosine| if cosine < least || cosine.is_nan() { cosine } else { least })
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;
    use candle_transformers::models::bert::Config;

    #[test]
    fn what_was_chosen_stands_and_is_not_measured_again() {
        let tokenizer = fake::model(8).tokenizer;
        let config = Config {
            vocab_size: tokenizer.vocabulary_size(),
            hidden_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 16,
            ..Config::default()
        };
        // Every vector is zero: measured, no precision is close enough to f32.
        let weights = Weights::bert(&config, &VarBuilder::zeros(DType::F32, &Device::Cpu)).unwrap();
        let open = |precision, chosen: &OnceLock<Choice>| {
            let options = Options { precision, threads: Some(1), ..Options::default() };
            encoder(&weights, Pooling::Mean, &options, &*tokenizer, 64, chosen)
        };
        assert!(matches!(open(Precision::Half, &OnceLock::new()), Err(EngineError::Precision { .. })));

        let chosen = OnceLock::from(Choice { arithmetic: Arithmetic::I16, block_rows: 17 });
        for precision in [Precision::Half, Precision::Auto] {
            let encoder = open(precision, &chosen).unwrap();
            assert_eq!((encoder.arithmetic(), encoder.block_rows()), (Arithmetic::I16, 17));
        }

        let chosen = OnceLock::new();
        let first = open(Precision::Auto, &chosen).unwrap();
        let Choice { arithmetic, block_rows } = *chosen.get().unwrap();
        assert_eq!((arithmetic, block_rows), (first.arithmetic(), first.block_rows()));
    }

    #[test]
    fn the_least_cosine_is_no_number_if_one_is_none() {
        let (a, b) = (vec![1.0, 0.0], vec![1.0, 1.0]);
        assert!((least_cosine(&[a.clone(), a.clone()], &[a.clone(), b.clone()]) - 0.5f64.sqrt()).abs() < 1e-7);
        assert!(least_cosine(&[a.clone(), a.clone()], &[vec![f32::NAN, 0.0], b]).is_nan());
    }
}
