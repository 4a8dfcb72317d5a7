//! Whether each model's files are here, are those of its manifest, and compute; and what model and store take.

use std::time::{Duration, Instant};

use super::finding::{Finding, fail, ok};
use crate::config::{ModelSettings, Settings};
use crate::domain::Truncation;
use crate::engine::{self, EngineError, Located, Upstream};
use crate::store::Config;

const CHECK: &str = "model";
const TEXT: &str = "The quick brown fox jumps over the lazy dog.";

/// What the service takes once its stores are full and its weights loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Needs {
    /// Address space of the stores' files.
    pub(super) mapped_bytes: u64,
    /// Disk of the stores.
    pub(super) disk_bytes: u64,
    /// Memory of the stores beside their files.
    pub(super) store_bytes: u64,
    /// Memory of the weights, by the size of their files.
    pub(super) weights_bytes: u64,
}

impl Needs {
    pub(super) fn memory_bytes(&self) -> u64 {
        self.store_bytes + self.weights_bytes
    }
}

pub(super) fn check(settings: &Settings) -> (Vec<Finding>, Needs) {
    let mut needs = Needs::default();
    let mut findings = Vec::new();
    for model in &settings.models {
        match engine::find(&model.source, &model.sources) {
            Ok(located) => {
                findings.push(store(&model.store, located.manifest.dims, &mut needs));
                findings.push(look(model, &located, &mut needs));
            }
            Err(error) => findings.push(absent(model, &error)),
        }
    }
    if let Some(most) = settings.models_memory_bytes_max {
        needs.weights_bytes = needs.weights_bytes.min(most);
    }
    (findings, needs)
}

fn absent(model: &ModelSettings, error: &EngineError) -> Finding {
    let advice = match error {
        EngineError::NotFound { .. } => {
            format!("vecmemo models fetch {}, or another --model or --models-dir", model.source)
        }
        _ => "correct what it names".to_owned(),
    };
    let found = error.to_string();
    // Where it was looked for stands in the lines below the first.
    let found = found.split("\nWhat to do").next().unwrap_or(&found).replace("\n  - ", "; ");
    fail(CHECK, found, advice)
}

/// What its entries take, added to the others'.
fn store(config: &Config, dims: usize, needs: &mut Needs) -> Finding {
    match config.footprint(dims) {
        Ok(footprint) => {
            needs.mapped_bytes += footprint.mapped_bytes;
            needs.disk_bytes += footprint.disk_bytes;
            needs.store_bytes += footprint.memory_bytes;
            ok("store", format!("room for {} entries of {dims} values", footprint.entries))
        }
        Err(error) => fail("store", error.to_string(), "change that setting"),
    }
}

/// Checks the files, loads the model, and has it compute.
fn look(model: &ModelSettings, located: &Located, needs: &mut Needs) -> Finding {
    let name = &located.manifest.name;
    if let Some(upstream) = &located.manifest.upstream {
        return elsewhere(name, upstream);
    }
    let begun = Instant::now();
    let loaded = engine::describe(&model.source, &model.sources, &model.engine).and_then(engine::Described::load);
    let mut model = match loaded {
        Ok(model) => model,
        Err(error) => {
            return fail(
                CHECK,
                format!("{name} from {}: {error}", located.place()),
                "fetch it again (vecmemo models fetch), or choose another",
            );
        }
    };
    let weights =
        located.manifest.files.first().and_then(|file| std::fs::metadata(located.folder.join(&file.path)).ok());
    needs.weights_bytes += weights.map_or(0, |weights| weights.len());
    let loading = begun.elapsed();
    let truncation = Truncation { direction: model.card.truncation_direction, max_tokens: model.card.max_tokens };
    let begun = Instant::now();
    let computed =
        model.tokenizer.tokenize(&[TEXT], "", truncation).and_then(|tokens| model.engine.embed(&[&tokens[0].ids]));
    let embedding = begun.elapsed();
    match computed {
        Ok(vectors) if vectors.iter().flatten().all(|value| value.is_finite()) => {
            let digests = located.manifest.files.iter().filter(|file| file.sha256.is_some()).count();
            let of = located.manifest.files.len();
            let kernel = model.card.device.kernel();
            ok(
                CHECK,
                format!(
                    "{name} from {}: {digests} of {of} files have a digest, and are right; loaded in {}, a short text in {} with {kernel}",
                    located.place(),
                    time(loading),
                    time(embedding)
                ),
            )
        }
        Ok(_) => fail(
            CHECK,
            format!("{name} computes vectors that are not finite"),
            "choose another precision, or fetch it again",
        ),
        Err(error) => fail(CHECK, format!("{name} does not compute: {error}"), "choose another device or precision"),
    }
}

/// An endpoint is not asked: that would cost money, and begin its canary.
fn elsewhere(name: &str, upstream: &Upstream) -> Finding {
    let place = format!("{name} is computed by {}", upstream.base_url);
    match upstream.key_variable.as_ref().filter(|variable| std::env::var_os(variable).is_none()) {
        Some(variable) => fail(
            CHECK,
            format!("{place}, and {variable} is not set here"),
            "set it for the service (EnvironmentFile= in the unit)",
        ),
        None => ok(CHECK, format!("{place}; not asked, for it may cost money")),
    }
}

/// Milliseconds, for people.
pub(super) fn time(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
