//! Models behind somebody else's endpoint: OpenAI's API and those that follow it, or text-embeddings-inference.
//!
//! ```text
//! ids ─► characters ─► text ─► requests of bounded size, some at once ─► ask ─► transport
//!                                                                        │ wire (what is sent, what may come)
//!                                                                        │ pace (rate, budget)   kept (across restarts)
//!                                                                        └ watch (counters, troubles)   canary (is it the same?)
//! ```
//!
//! Promises: what was paid for is answered, whatever became of the rest of its batch; no vector of another length, order or
//! count than asked for; never more requests, tokens or time than the manifest allows. Never logs or shows a key, or a text,
//! or an answer's words that repeat either.

mod ask;
mod canary;
mod characters;
mod kept;
mod pace;
mod settings;
mod transport;
mod watch;
mod wire;
mod world;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use settings::{Dialect, Encoding, OnChange, Upstream};

use self::ask::{Caller, Fault};
use self::canary::Canary;
use self::characters::Characters;
use self::transport::{Http, Transport};
use self::world::{System, World};
use super::{AtOnce, Engine, EngineError, Manifest, Model, Monitor};
use crate::domain::{ActiveDevice, Device, ModelCard};

/// Takes up a model behind an endpoint. What has to survive a restart is kept in `folder`.
pub(super) fn open(manifest: &Manifest, upstream: &Upstream, folder: &Path) -> Result<Model, EngineError> {
    let transport = Http::new(&manifest.name, upstream)?;
    with(manifest, upstream, folder, Box::new(transport), Arc::new(System::new()))
}

fn with(
    manifest: &Manifest,
    upstream: &Upstream,
    folder: &Path,
    transport: Box<dyn Transport>,
    world: Arc<dyn World>,
) -> Result<Model, EngineError> {
    let caller = Caller::new(&manifest.name, manifest.dims, upstream, folder, transport, world)?;
    let (canary, mark) = Canary::start(&caller)?;
    let card = ModelCard {
        name: manifest.name.clone(),
        source: manifest.source.clone(),
        version: upstream.fingerprint(manifest.dims, mark.as_deref()),
        dims: manifest.dims,
        truncation_direction: manifest.truncation_direction,
        max_tokens: upstream.max_characters,
        pooling: manifest.pooling,
        normalize: manifest.normalize,
        prompts: manifest.prompts.clone(),
        default_prompt: manifest.default_prompt.clone(),
        matryoshka_dims: manifest.matryoshka_dims.clone(),
        precision: "upstream".to_owned(),
        device: ActiveDevice::new(
            Device::Upstream,
            format!("{} {}", upstream.dialect.as_str(), upstream.model()).trim_end(),
        ),
        licence: manifest.licence.clone(),
    };
    let tokenizer = Characters { model: manifest.name.clone() };
    Ok(Model { card, tokenizer: Arc::new(tokenizer), engine: Box::new(Remote { caller, canary }) })
}

/// The engine: has no weights, but somebody's address.
struct Remote {
    caller: Caller,
    canary: Option<Canary>,
}

impl Engine for Remote {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.embed_each(batch).into_iter().collect()
    }

    fn embed_each(&mut self, batch: &[&[u32]]) -> Vec<Result<Vec<f32>, EngineError>> {
        let refusal = self.canary.as_mut().and_then(|canary| canary.when_due(&self.caller));
        let outcomes = match refusal {
            Some(message) => vec![Err(Fault::Failed(message)); batch.len()],
            None => ask_all(&self.caller, batch),
        };
        outcomes.into_iter().map(|outcome| outcome.map_err(|fault| fault.into_error(&self.caller.model))).collect()
    }

    fn at_once(&self) -> Option<AtOnce> {
        let upstream = &self.caller.upstream;
        let parallel = upstream.requests_parallel;
        Some(AtOnce {
            texts: upstream.batch_texts_max.saturating_mul(parallel),
            tokens: upstream.batch_characters_max.saturating_mul(parallel),
        })
    }

    fn monitor(&self) -> Option<Arc<dyn Monitor>> {
        Some(self.caller.watch.clone())
    }
}

/// Each text's vector or fault, asked for in as many requests as it takes, some at once.
fn ask_all(caller: &Caller, batch: &[&[u32]]) -> Vec<Result<Vec<f32>, Fault>> {
    let mut outcomes: Vec<Option<Result<Vec<f32>, Fault>>> = vec![None; batch.len()];
    let mut texts = Vec::with_capacity(batch.len());
    for (index, ids) in batch.iter().enumerate() {
        match characters::text(ids) {
            Ok(text) => texts.push((index, text)),
            Err(id) => {
                let message = format!("the token id {id} is no Unicode character, which is what ids of this model are");
                outcomes[index] = Some(Err(Fault::Rejected(message)));
            }
        }
    }
    let lengths: Vec<usize> = texts.iter().map(|(index, _)| batch[*index].len()).collect();
    let requests = cut(&lengths, caller.upstream.batch_texts_max, caller.upstream.batch_characters_max);
    let (next, answered) = (AtomicUsize::new(0), Mutex::new(&mut outcomes));
    let work = || {
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let texts = &texts[request.clone()];
            let vectors = caller.ask_each(&texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>());
            let mut answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
            for ((index, _), vector) in texts.iter().zip(vectors) {
                answered[*index] = Some(vector);
            }
        }
    };
    std::thread::scope(|scope| {
        // This thread works too.
        for _ in 1..caller.upstream.requests_parallel.min(requests.len()) {
            scope.spawn(work);
        }
        work();
    });
    let missing = || Err(Fault::Failed("its request had no ending".to_owned()));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
}

/// Cuts texts of the given lengths, in order, into requests of at most so many texts and characters; a longer text is alone.
fn cut(lengths: &[usize], texts_max: usize, characters_max: usize) -> Vec<std::ops::Range<usize>> {
    let mut requests: Vec<std::ops::Range<usize>> = Vec::new();
    let mut characters = 0;
    for (index, &length) in lengths.iter().enumerate() {
        match requests.last_mut() {
            Some(request) if request.len() < texts_max && characters + length <= characters_max => {
                request.end = index + 1;
                characters += length;
            }
            _ => {
                requests.push(index..index + 1);
                characters = length;
            }
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_hold_at_most_so_many_texts_and_characters() {
        assert_eq!(cut(&[3, 3, 3, 9, 1, 1, 1], 2, 6), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert!(cut(&[], 2, 6).is_empty());
    }
}
