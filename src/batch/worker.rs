//! The one thread that owns the engine.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::Config;
use super::line::Queued;
use super::queue::{Computed, JobError, Queue};
use crate::domain::Lane;
use crate::engine::Engine;
use crate::urgency::stand_back;

pub(super) struct Worker {
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    pub(super) fn start(engine: Box<dyn Engine>, queue: Arc<Queue>, config: Config) -> Self {
        let thread = std::thread::Builder::new()
            .name("vecmemo-engine".to_owned())
            .spawn(move || run(engine, &queue, &config))
            .expect("the system can start one more thread at start-up");
        Self { thread: Mutex::new(Some(thread)) }
    }

    pub(super) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread had panicked");
        }
    }
}

fn run(mut engine: Box<dyn Engine>, queue: &Queue, config: &Config) {
    stand_back(config.niceness);
    while let Some((lane, batch)) = queue.take() {
        compute(engine.as_mut(), lane, batch, queue, config);
    }
}

fn compute(engine: &mut dyn Engine, lane: Lane, batch: Vec<Queued>, queue: &Queue, config: &Config) {
    let metrics = queue.metrics();
    let (wanted, left): (Vec<_>, Vec<_>) = batch.into_iter().partition(|(_, job)| job.recipient.wanted());
    metrics.abandoned.inc_by(left.len() as u64);
    drop(left);
    if wanted.is_empty() {
        return;
    }

    let started = Instant::now();
    let ids: Vec<&[u32]> = wanted.iter().map(|(_, job)| &*job.tokens.ids).collect();
    let tokens: usize = ids.iter().map(|ids| ids.len()).sum();
    // An engine holds no state between calls that a panic could leave half changed: it is asked again for the next batch.
    let outcome = catch_unwind(AssertUnwindSafe(|| engine.embed_each(&ids)));
    let inference = started.elapsed();
    let outcomes = match outcome {
        Ok(outcomes) if outcomes.len() == wanted.len() => {
            outcomes.into_iter().map(|outcome| outcome.map_err(JobError::from)).collect()
        }
        Ok(mut outcomes) => {
            let error = match outcomes.pop() {
                Some(Err(error)) if outcomes.is_empty() => JobError::from(error),
                last => {
                    let given = outcomes.len() + usize::from(last.is_some());
                    JobError::Engine(format!("it gave {given} vectors for {} texts", wanted.len()))
                }
            };
            vec![Err(error); wanted.len()]
        }
        Err(panic) => vec![Err(JobError::Panicked(panic_message(panic.as_ref()))); wanted.len()],
    };
    metrics.observe_batch(lane, wanted.len(), tokens, config.batch_tokens_max, inference.as_secs_f64());

    let failed = outcomes.iter().filter(|outcome: &&Result<Vec<f32>, JobError>| outcome.is_err()).count();
    if let Some(error) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
        metrics.failures.inc();
        tracing::error!(texts = wanted.len(), failed, tokens, %error, "a batch failed");
    }
    if failed < wanted.len() {
        queue.observe_batch(lane, tokens, inference);
    } else {
        queue.observe_failure(lane, inference);
    }
    for ((arrived, job), outcome) in wanted.into_iter().zip(outcomes) {
        let queued_for = started - arrived;
        if outcome.is_ok() {
            metrics.observe_wait(lane, queued_for.as_secs_f64());
        }
        job.recipient.finish(outcome.map(|vector| Computed { vector, queued_for, inference }));
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
