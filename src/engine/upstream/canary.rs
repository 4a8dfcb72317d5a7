//! Whether the model there is still the one whose vectors are stored: one text's vector, against what it was at first.
//!
//! ```text
//! start, or due ─► ask ─┬─ as it was ─────────────► computing goes on
//!                       ├─ another ─► said, and: alert ─► computing goes on
//!                       │                        refuse ─► nothing is computed until it is as it was, or `version` is raised
//!                       │                        switch ─► at the start a new fingerprint; while running as refuse
//!                       └─ no answer ─► said, and asked again in a minute
//! ```
//!
//! It is checked by the engine before a batch, not by a thread of its own: with nothing to compute there is nothing to spoil.

use std::time::Duration;

use super::super::EngineError;
use super::ask::{Caller, Fault};
use super::kept::Reference;
use super::settings::OnChange;
use super::watch::Concern;

/// When to ask again after no answer, or after a change.
const AGAIN: Duration = Duration::from_secs(60);

pub(super) struct Canary {
    text: String,
    /// The fingerprint of what is declared.
    identity: String,
    reference: Option<Reference>,
    due: Duration,
    /// Why nothing is computed.
    refusal: Option<String>,
}

impl Canary {
    /// Checks the canary at the start; `None` if the manifest has none. Answers also the mark for the fingerprint.
    pub(super) fn start(caller: &Caller) -> Result<(Option<Self>, Option<String>), EngineError> {
        let Some(text) = caller.upstream.canary.clone() else { return Ok((None, None)) };
        let identity = caller.upstream.fingerprint(caller.dims, None).to_string();
        let kept = caller.keeper().kept.canaries.get(&identity).cloned();
        let mut canary = Self { text, identity, reference: kept, due: Duration::ZERO, refusal: None };
        let switches = caller.upstream.on_canary_change == OnChange::Switch;
        canary.check(caller, switches)?;
        let mark = match (&canary.reference, switches) {
            (_, false) => None,
            (Some(reference), true) => Some(reference.mark.clone()),
            (None, true) => {
                let message = "on_canary_change = \"switch\" needs the canary's vector before anything is served, and there is no answer: \
                               start again when the endpoint answers";
                return Err(Fault::Failed(message.to_owned()).into_error(&caller.model));
            }
        };
        Ok((Some(canary), mark))
    }

    /// Asks, if it is time to. The answer is why nothing may be computed, if so.
    pub(super) fn when_due(&mut self, caller: &Caller) -> Option<String> {
        if caller.world.now() >= self.due
            && let Err(error) = self.check(caller, false)
        {
            caller.saved(Err(error));
        }
        self.refusal.clone()
    }

    fn check(&mut self, caller: &Caller, may_switch: bool) -> Result<(), EngineError> {
        let every = Duration::from_secs_f64(caller.upstream.canary_seconds);
        let asked = caller.ask(&[&self.text]);
        let now = caller.world.now();
        let vector = match asked {
            Ok(mut vectors) => vectors.swap_remove(0),
            Err(fault) => {
                self.due = now + every.min(AGAIN);
                caller.watch.raise(Concern::Unchecked, format!("the canary could not be checked: {}", fault.message()));
                return Ok(());
            }
        };
        caller.watch.clear(Concern::Unchecked);
        self.due = now + every;
        let before = self.reference.as_ref().filter(|reference| reference.text == self.text);
        let Some(before) = before else {
            let mark = self.reference.take().map(|reference| reference.mark);
            return self.keep(caller, vector, mark);
        };
        let similarity = cosine(&before.vector, &vector);
        caller.watch.similarity.set(similarity);
        let least = caller.upstream.canary_min_similarity;
        if similarity >= least {
            caller.watch.clear(Concern::Changed);
            self.refusal = None;
            return Ok(());
        }
        let change = format!(
            "changed: the canary's vector has a cosine of {similarity:.6} to its first one, at least {least} is expected"
        );
        if may_switch {
            tracing::warn!(
                model = caller.model,
                similarity,
                least,
                "the model there has changed: a new fingerprint is taken"
            );
            return self.keep(caller, vector, None);
        }
        self.due = now + every.min(AGAIN);
        let (message, refused) = match caller.upstream.on_canary_change {
            OnChange::Alert => {
                (format!("{change}; raise version in its manifest to begin a cache of the new model"), false)
            }
            OnChange::Refuse => {
                (format!("{change}; nothing more is computed: raise version in its manifest and start again"), true)
            }
            OnChange::Switch => {
                (format!("{change}; nothing more is computed: start again to take a new fingerprint"), true)
            }
        };
        self.refusal = refused.then(|| message.clone());
        caller.watch.raise(Concern::Changed, message);
        Ok(())
    }

    /// Makes a vector the one to compare with.
    fn keep(&mut self, caller: &Caller, vector: Vec<f32>, mark: Option<String>) -> Result<(), EngineError> {
        caller.watch.similarity.set(1.0);
        // Of the vector itself: should the file be lost, an endpoint that answers the same bits gets the same mark again, and
        // any other a new one, never that of another model.
        let mark = mark.unwrap_or_else(|| {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            blake3::hash(&bytes).to_hex()[..32].to_owned()
        });
        let since_unix_seconds = caller.world.unix_seconds();
        let reference = Reference { text: self.text.clone(), vector, since_unix_seconds, mark };
        self.reference = Some(reference.clone());
        let mut keeper = caller.keeper();
        keeper.kept.canaries.insert(self.identity.clone(), reference);
        keeper.save()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    // Vectors of other lengths, or of none, are not alike.
    if a.len() == b.len() && norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}
