//! The bounded queue before the engine.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::Metrics;
use crate::domain::Tokens;

/// The shortest and longest waits a refused caller is told.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// One text to compute, and who is to hear of it.
pub struct Job {
    /// What the model reads.
    pub tokens: Tokens,
    /// Who waits.
    pub recipient: Box<dyn Recipient>,
}

/// Who waits for a job. Called on the engine's thread: must be quick and must not block for long.
pub trait Recipient: Send {
    /// Whether anybody still waits. Asked once, right before the job would be computed; after `false` the recipient is
    /// dropped and hears no more.
    fn wanted(&self) -> bool;
    /// The job's one ending, unless it was not wanted.
    fn finish(self: Box<Self>, outcome: Result<Computed, JobError>);
}

/// What the engine made of a job.
#[derive(Clone, Debug)]
pub struct Computed {
    /// The model's vector, not normalised.
    pub vector: Vec<f32>,
    /// How long the job waited.
    pub queued_for: Duration,
    /// How long its batch took.
    pub inference: Duration,
}

/// Why a job has no vector.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The engine refused or failed the batch.
    #[error("the model failed: {0}")]
    Engine(String),
    /// The engine panicked: a bug, reported in the log.
    #[error("the model's thread panicked: {0}")]
    Panicked(String),
    /// It was never queued.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why jobs were not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no room for all of them.
    #[error("the queue is full: {queued} texts wait")]
    Full {
        /// How many texts wait.
        queued: usize,
        /// When there should be room, by the rate at which the queue drains.
        retry_after: Duration,
    },
    /// The embedder is draining.
    #[error("the embedder is shutting down")]
    Closed,
}

/// A look at the queue.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct QueueState {
    /// Texts that wait.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
    /// The most texts that may wait.
    pub texts_max: usize,
    /// How fast tokens have been computed lately; zero before the first batch.
    pub tokens_per_second: f64,
}

impl QueueState {
    /// When the queue as it is will have been worked off.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        if self.tokens_per_second <= 0.0 {
            return RETRY_AFTER_MIN;
        }
        let seconds = self.tokens as f64 / self.tokens_per_second;
        Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())).max(RETRY_AFTER_MIN)
    }
}

pub(super) struct Queue {
    texts_max: usize,
    inner: Mutex<Inner>,
    arrived: Condvar,
    metrics: Metrics,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<(Instant, Job)>,
    tokens: usize,
    tokens_per_second: f64,
    closed: bool,
}

impl Queue {
    pub(super) fn new(texts_max: usize) -> Self {
        Self { texts_max, inner: Mutex::default(), arrived: Condvar::new(), metrics: Metrics::new() }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A panic while the lock was held cannot leave the queue half changed: each change is complete before anything
    /// that can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, jobs: Vec<Job>) -> Result<(), (Refusal, Vec<Job>)> {
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.closed {
            return Err((Refusal::Closed, jobs));
        }
        if inner.jobs.len() + jobs.len() > self.texts_max {
            let state = self.state_of(&inner);
            return Err((Refusal::Full { queued: state.texts, retry_after: state.retry_after() }, jobs));
        }
        inner.tokens += jobs.iter().map(|job| job.tokens.ids.len()).sum::<usize>();
        inner.jobs.extend(jobs.into_iter().map(|job| (now, job)));
        self.metrics.set_queue(inner.jobs.len(), inner.tokens);
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for jobs and takes them in order of arrival, until they hold `tokens` tokens. `None`: closed and empty.
    pub(super) fn take(&self, tokens: usize) -> Option<Vec<(Instant, Job)>> {
        let mut inner = self.lock();
        while inner.jobs.is_empty() {
            if inner.closed {
                return None;
            }
            inner = self.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let mut taken = Vec::new();
        let mut taken_tokens = 0;
        while let Some((_, job)) = inner.jobs.front() {
            let length = job.tokens.ids.len();
            if !taken.is_empty() && taken_tokens + length > tokens {
                break;
            }
            taken_tokens += length;
            taken.extend(inner.jobs.pop_front());
        }
        inner.tokens -= taken_tokens;
        self.metrics.set_queue(inner.jobs.len(), inner.tokens);
        Some(taken)
    }

    /// Notes how fast a batch went: the rate is a moving average over about the last five batches.
    pub(super) fn observe_rate(&self, tokens: usize, took: Duration) {
        let rate = tokens as f64 / took.as_secs_f64().max(1e-6);
        let mut inner = self.lock();
        inner.tokens_per_second =
            if inner.tokens_per_second == 0.0 { rate } else { 0.8 * inner.tokens_per_second + 0.2 * rate };
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    pub(super) fn state(&self) -> QueueState {
        self.state_of(&self.lock())
    }

    fn state_of(&self, inner: &Inner) -> QueueState {
        QueueState {
            texts: inner.jobs.len(),
            tokens: inner.tokens,
            texts_max: self.texts_max,
            tokens_per_second: inner.tokens_per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;
    impl Recipient for Nobody {
        fn wanted(&self) -> bool {
            true
        }
        fn finish(self: Box<Self>, _: Result<Computed, JobError>) {}
    }

    fn jobs(lengths: &[usize]) -> Vec<Job> {
        let job = |&length: &usize| Job {
            tokens: Tokens { ids: vec![0; length].into(), count_before_truncation: length },
            recipient: Box::new(Nobody),
        };
        lengths.iter().map(job).collect()
    }

    #[test]
    fn a_full_queue_takes_all_jobs_or_none_and_says_when_to_come_back() {
        let queue = Queue::new(3);
        queue.push(jobs(&[5, 5])).map_err(|(refusal, _)| refusal).unwrap();
        queue.observe_rate(1, Duration::from_secs(1));
        let (refusal, returned) = queue.push(jobs(&[1, 1])).unwrap_err();
        assert_eq!(returned.len(), 2);
        let Refusal::Full { queued, retry_after } = refusal else { panic!("{refusal}") };
        assert_eq!((queued, retry_after), (2, Duration::from_secs(10)));
        assert_eq!(queue.state().texts, 2);
    }

    #[test]
    fn jobs_leave_in_order_of_arrival_up_to_the_token_budget() {
        let queue = Queue::new(10);
        queue.push(jobs(&[50, 3, 3, 3])).map_err(|(refusal, _)| refusal).unwrap();
        let taken =
            |taken: Vec<(Instant, Job)>| -> Vec<usize> { taken.iter().map(|(_, job)| job.tokens.ids.len()).collect() };
        assert_eq!(taken(queue.take(7).unwrap()), vec![50]);
        assert_eq!(taken(queue.take(7).unwrap()), vec![3, 3]);
        queue.close();
        assert_eq!(taken(queue.take(7).unwrap()), vec![3]);
        assert!(queue.take(7).is_none());
        assert_eq!(queue.state().tokens, 0);
    }
}
