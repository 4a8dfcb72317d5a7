//! The one thread that owns the engine.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::queue::{Computed, Job, JobError, Queue};
use super::{Config, plan};
use crate::engine::Engine;

/// How many batches' worth of jobs are taken from the queue at once, to be sorted by length. More would fill batches
/// better and make the last of them wait longer.
const WINDOW_BATCHES: usize = 4;

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
    while let Some(jobs) = queue.take(config.batch_tokens_max * WINDOW_BATCHES) {
        let lengths: Vec<usize> = jobs.iter().map(|(_, job)| job.tokens.ids.len()).collect();
        let mut jobs: Vec<Option<(Instant, Job)>> = jobs.into_iter().map(Some).collect();
        for batch in plan(&lengths, config.batch_tokens_max, config.batch_texts_max) {
            let batch = batch.into_iter().filter_map(|index| jobs[index].take()).collect();
            compute(engine.as_mut(), batch, queue, config);
        }
    }
}

fn compute(engine: &mut dyn Engine, batch: Vec<(Instant, Job)>, queue: &Queue, config: &Config) {
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
    let outcome = catch_unwind(AssertUnwindSafe(|| engine.embed(&ids)));
    let inference = started.elapsed();
    let outcome = match outcome {
        Ok(Ok(vectors)) if vectors.len() == wanted.len() => Ok(vectors),
        Ok(Ok(vectors)) => {
            Err(JobError::Engine(format!("it gave {} vectors for {} texts", vectors.len(), wanted.len())))
        }
        Ok(Err(error)) => Err(JobError::Engine(error.to_string())),
        Err(panic) => Err(JobError::Panicked(panic_message(panic.as_ref()))),
    };
    metrics.observe_batch(wanted.len(), tokens, config.batch_tokens_max, inference.as_secs_f64());

    match outcome {
        Ok(vectors) => {
            queue.observe_rate(tokens, inference);
            for ((arrived, job), vector) in wanted.into_iter().zip(vectors) {
                let queued_for = started - arrived;
                metrics.observe_wait(queued_for.as_secs_f64());
                job.recipient.finish(Ok(Computed { vector, queued_for, inference }));
            }
        }
        Err(error) => {
            metrics.failures.inc();
            tracing::error!(texts = wanted.len(), tokens, %error, "a batch failed");
            for (_, job) in wanted {
                job.recipient.finish(Err(error.clone()));
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
