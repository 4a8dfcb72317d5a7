//! The bounded queue before the engine: a line for each lane, and the choice of what is computed next.
//!
//! The queue is bounded as a whole. Of it a quarter is kept for queries and an eighth for each of the other lanes; the rest
//! is whoever's comes first. So a lane that floods is refused while the others still find room.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Config;
use super::line::{Line, Queued};
use super::metrics::Metrics;
use super::pace::Pace;
use super::schedule::Schedule;
use crate::domain::{Lane, Tokens};
use crate::engine::EngineError;

/// The shortest and longest waits a refused caller is told.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// What part of the queue is kept for each lane: one in so many.
const KEPT_ONE_IN: [usize; LANES] = [4, 8, 8];

/// How many batches' worth of jobs are sorted by length together, by lane. More would fill batches better and make the last
/// of them wait longer; queries are sorted within their batch alone.
const WINDOW_BATCHES: [usize; LANES] = [1, 4, 4];

/// Over how much engine time the rates at which lanes drain are averaged, in seconds.
const DRAIN_SECONDS: f64 = 5.0;

const LANES: usize = Lane::ALL.len();

/// One text to compute, and who is to hear of it.
pub struct Job {
    /// What the model reads.
    pub tokens: Tokens,
    /// Its lane, and the means to raise it. Each job has its own.
    pub ticket: Ticket,
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
    /// The engine refuses this text, whoever asks.
    #[error("{0}")]
    Input(String),
    /// The engine can do nothing now, but later.
    #[error("{message}")]
    Busy {
        /// Why.
        message: String,
        /// When.
        retry_after: Duration,
    },
    /// The engine panicked: a bug, reported in the log.
    #[error("the model's thread panicked: {0}")]
    Panicked(String),
    /// It was never queued.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A job's place in the queue: what lane it waits in, and the means to raise it. Clones are the same ticket.
#[derive(Clone, Debug)]
pub struct Ticket {
    inner: Arc<TicketInner>,
}

#[derive(Debug)]
struct TicketInner {
    number: u64,
    lane: AtomicU8,
}

impl Ticket {
    /// A ticket for a job. Of one lane, jobs whose tickets were made first go first.
    #[must_use]
    pub fn new(lane: Lane) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { inner: Arc::new(TicketInner { number, lane: AtomicU8::new(lane as u8) }) }
    }

    /// The lane its job waits in, or will.
    #[must_use]
    pub fn lane(&self) -> Lane {
        Lane::ALL[usize::from(self.inner.lane.load(Ordering::Acquire))]
    }

    /// Raises it to a lane that goes before its own. `true`: it was behind. If its job is queued already, the queue has to be
    /// told: [`Embedder::promote`](super::Embedder::promote).
    pub fn raise(&self, lane: Lane) -> bool {
        self.inner.lane.fetch_min(lane as u8, Ordering::AcqRel) > lane as u8
    }

    pub(super) fn number(&self) -> u64 {
        self.inner.number
    }
}

impl From<EngineError> for JobError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Input { .. } => Self::Input(message),
            EngineError::Busy { retry_after, .. } => Self::Busy { message, retry_after },
            _ => Self::Engine(message),
        }
    }
}

/// Why jobs were not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no room for all of them.
    #[error("the queue is full: {queued} texts of lane {lane} wait")]
    Full {
        /// The lane they were for.
        lane: Lane,
        /// How many texts wait in it.
        queued: usize,
        /// When there should be room, by the rate at which the lane drains.
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
    /// The same by lane, in the order in which lanes go first.
    pub lanes: [LaneState; LANES],
}

/// A look at one lane of the queue.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct LaneState {
    /// Which.
    pub lane: Lane,
    /// Texts that wait in it.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
    /// The most texts that may wait in it, while nobody uses what is kept for the others.
    pub texts_max: usize,
    /// How fast it has drained lately, or would have; zero before the first batch.
    pub tokens_per_second: f64,
}

impl QueueState {
    /// When the queue as it is will have been worked off.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        retry_after(self.tokens, self.tokens_per_second)
    }
}

impl LaneState {
    /// When the lane as it is will have been worked off.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        retry_after(self.tokens, self.tokens_per_second)
    }
}

fn retry_after(tokens: usize, tokens_per_second: f64) -> Duration {
    if tokens_per_second <= 0.0 {
        return RETRY_AFTER_MIN;
    }
    let seconds = tokens as f64 / tokens_per_second;
    Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())).max(RETRY_AFTER_MIN)
}

/// Texts of the queue that only the given lane may take.
fn kept(texts_max: usize, lane: Lane) -> usize {
    texts_max / KEPT_ONE_IN[lane as usize]
}

/// The most texts that may wait in a lane of a queue, while nobody uses what is kept for the others.
pub(super) fn lane_texts_max(texts_max: usize, lane: Lane) -> usize {
    texts_max - Lane::ALL.into_iter().filter(|&other| other != lane).map(|other| kept(texts_max, other)).sum::<usize>()
}

pub(super) struct Queue {
    config: Config,
    inner: Mutex<Inner>,
    arrived: Condvar,
    metrics: Metrics,
}

struct Inner {
    lines: [Line; LANES],
    schedule: Schedule,
    pace: Pace,
    tokens_per_second: f64,
    lanes_per_second: [f64; LANES],
    closed: bool,
}

impl Inner {
    fn waiting(&self) -> [bool; LANES] {
        self.lines.each_ref().map(|line| !line.is_empty())
    }

    fn texts(&self) -> usize {
        self.lines.iter().map(Line::texts).sum()
    }
}

impl Queue {
    pub(super) fn new(config: Config) -> Self {
        let inner = Inner {
            lines: Default::default(),
            schedule: Schedule::new(config.batch_time_max),
            pace: Pace::new(config.batch_time_max, config.batch_tokens_max),
            tokens_per_second: 0.0,
            lanes_per_second: [0.0; LANES],
            closed: false,
        };
        Self { config, inner: Mutex::new(inner), arrived: Condvar::new(), metrics: Metrics::new() }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A panic while the lock was held cannot leave the queue half changed: each change is complete before anything
    /// that can panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_metrics(&self, inner: &Inner) {
        for (lane, line) in Lane::ALL.into_iter().zip(&inner.lines) {
            self.metrics.set_queue(lane, line.texts(), line.tokens());
        }
    }

    pub(super) fn push(&self, jobs: Vec<Job>) -> Result<(), (Refusal, Vec<Job>)> {
        let Some(lane) = jobs.first().map(|job| job.ticket.lane()) else { return Ok(()) };
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.closed {
            return Err((Refusal::Closed, jobs));
        }
        // Read under the lock: a ticket raised before is seen here, one raised later is found in its line.
        let lanes: Vec<Lane> = jobs.iter().map(|job| job.ticket.lane()).collect();
        let mut texts = inner.lines.each_ref().map(Line::texts);
        lanes.iter().for_each(|&lane| texts[lane as usize] += 1);
        let used_or_kept = |lane: Lane| texts[lane as usize].max(kept(self.config.queue_texts_max, lane));
        if Lane::ALL.into_iter().map(used_or_kept).sum::<usize>() > self.config.queue_texts_max {
            let state = self.state_of(&inner).lanes[lane as usize];
            self.metrics.observe_refused(lane, jobs.len());
            return Err((Refusal::Full { lane, queued: state.texts, retry_after: state.retry_after() }, jobs));
        }
        for (job, lane) in jobs.into_iter().zip(lanes) {
            inner.lines[lane as usize].push((now, job));
        }
        self.set_metrics(&inner);
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    /// Moves the jobs that wait behind the lanes that their tickets say.
    pub(super) fn promote(&self, tickets: &[Ticket]) {
        let mut inner = self.lock();
        for ticket in tickets {
            let lane = ticket.lane();
            let mut behind = inner.lines[lane as usize + 1..].iter_mut();
            if let Some(queued) = behind.find_map(|line| line.remove(ticket.number())) {
                inner.lines[lane as usize].push(queued);
                self.metrics.promoted.inc();
            }
        }
        self.set_metrics(&inner);
    }

    /// Waits for jobs and takes the next batch, all of one lane. `None`: closed and empty.
    pub(super) fn take(&self) -> Option<(Lane, Vec<Queued>)> {
        let mut inner = self.lock();
        let lane = loop {
            if let Some(lane) = inner.schedule.next(inner.waiting()) {
                break lane;
            }
            if inner.closed {
                return None;
            }
            inner = self.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner);
        };
        let tokens_max = inner.pace.tokens(lane);
        let windows = WINDOW_BATCHES[lane as usize];
        let batch = inner.lines[lane as usize].take(tokens_max, self.config.batch_texts_max, windows);
        self.set_metrics(&inner);
        Some((lane, batch))
    }

    /// Notes how fast a batch of a lane went. The rates are moving averages: the engine's over about the last five
    /// batches, the lanes' over some seconds of them.
    pub(super) fn observe_batch(&self, lane: Lane, tokens: usize, took: Duration) {
        let rate = tokens as f64 / took.as_secs_f64().max(1e-6);
        let weight = 1.0 - (-took.as_secs_f64() / DRAIN_SECONDS).exp().max(0.1);
        let mut inner = self.lock();
        let (waiting, first) = (inner.waiting(), inner.tokens_per_second == 0.0);
        inner.tokens_per_second = if first { rate } else { 0.8 * inner.tokens_per_second + 0.2 * rate };
        for (other, drain) in Lane::ALL.into_iter().zip(&mut inner.lanes_per_second) {
            // Who had nothing waiting would have been served.
            let drained = if other == lane || !waiting[other as usize] { rate } else { 0.0 };
            *drain = if first { rate } else { *drain + weight * (drained - *drain) };
        }
        inner.pace.observe(lane, tokens, took);
        inner.schedule.charge(lane, took, waiting);
    }

    /// Notes that a lane had the engine for nothing.
    pub(super) fn observe_failure(&self, lane: Lane, took: Duration) {
        let mut inner = self.lock();
        let waiting = inner.waiting();
        inner.schedule.charge(lane, took, waiting);
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    pub(super) fn state(&self) -> QueueState {
        self.state_of(&self.lock())
    }

    fn state_of(&self, inner: &Inner) -> QueueState {
        let texts_max = self.config.queue_texts_max;
        QueueState {
            texts: inner.texts(),
            tokens: inner.lines.iter().map(Line::tokens).sum(),
            texts_max,
            tokens_per_second: inner.tokens_per_second,
            lanes: Lane::ALL.map(|lane| LaneState {
                lane,
                texts: inner.lines[lane as usize].texts(),
                tokens: inner.lines[lane as usize].tokens(),
                texts_max: lane_texts_max(texts_max, lane),
                tokens_per_second: inner.lanes_per_second[lane as usize],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Nobody;
    impl Recipient for Nobody {
        fn wanted(&self) -> bool {
            true
        }
        fn finish(self: Box<Self>, _: Result<Computed, JobError>) {}
    }

    fn queue(queue_texts_max: usize) -> Queue {
        Queue::new(Config { queue_texts_max, ..Config::default() })
    }

    fn job(lane: Lane, length: usize) -> Job {
        Job {
            tokens: Tokens { ids: vec![0; length].into(), count_before_truncation: length },
            ticket: Ticket::new(lane),
            recipient: Box::new(Nobody),
        }
    }

    fn jobs(lane: Lane, lengths: &[usize]) -> Vec<Job> {
        lengths.iter().map(|&length| job(lane, length)).collect()
    }

    fn push(queue: &Queue, lane: Lane, lengths: &[usize]) -> Result<(), Refusal> {
        queue.push(jobs(lane, lengths)).map_err(|(refusal, _)| refusal)
    }

    fn lengths(batch: Option<(Lane, Vec<Queued>)>) -> (Lane, Vec<usize>) {
        let (lane, batch) = batch.unwrap();
        (lane, batch.iter().map(|(_, job)| job.tokens.ids.len()).collect())
    }

    #[test]
    fn a_full_queue_takes_all_jobs_or_none_and_says_when_to_come_back() {
        let queue = queue(3);
        push(&queue, Lane::Query, &[5, 5]).unwrap();
        queue.observe_batch(Lane::Query, 1, Duration::from_secs(1));
        let (refusal, returned) = queue.push(jobs(Lane::Query, &[1, 1])).unwrap_err();
        assert_eq!(returned.len(), 2);
        let Refusal::Full { lane: Lane::Query, queued, retry_after } = refusal else { panic!("{refusal}") };
        assert_eq!((queued, retry_after), (2, Duration::from_secs(10)));
        assert_eq!(queue.state().texts, 2);
    }

    #[test]
    fn jobs_of_a_lane_leave_in_order_of_arrival_up_to_the_token_budget() {
        let config = Config { batch_tokens_max: 7, ..Config::default() };
        let queue = Queue::new(config);
        push(&queue, Lane::Query, &[50, 3, 3, 3]).unwrap();
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![50]));
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![3, 3]));
        queue.close();
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![3]));
        assert!(queue.take().is_none());
        assert_eq!(queue.state().tokens, 0);
    }

    #[test]
    fn between_two_batches_of_a_sorted_window_a_query_goes_first() {
        let queue = Queue::new(Config { batch_tokens_max: 10, ..Config::default() });
        push(&queue, Lane::WarmUp, &[1, 9, 2, 8, 10]).unwrap();
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![10]));
        push(&queue, Lane::Ingest, &[4]).unwrap();
        push(&queue, Lane::Query, &[5]).unwrap();
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![5]));
        assert_eq!(lengths(queue.take()), (Lane::Ingest, vec![4]));
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![9]));
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![8, 2]));
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![1]));
    }

    #[test]
    fn a_lane_that_floods_is_refused_while_the_others_have_what_is_kept_for_them() {
        let queue = queue(80);
        let flood = |lane| (0..1000).take_while(|_| push(&queue, lane, &[10]).is_ok()).count();
        assert_eq!((flood(Lane::WarmUp), lane_texts_max(80, Lane::WarmUp)), (50, 50));
        assert_eq!(flood(Lane::Ingest), 10);
        assert_eq!(flood(Lane::Query), 20);
        assert_eq!((queue.state().texts, queue.state().texts_max), (80, 80));
        for _ in 0..3 {
            queue.take().unwrap();
        }
        assert!(flood(Lane::Ingest) > 0, "what others left is whoever's comes first");
    }

    #[test]
    fn a_lane_is_told_to_come_back_by_its_own_rate() {
        let queue = queue(8000);
        push(&queue, Lane::Query, &[10; 5000]).unwrap();
        push(&queue, Lane::WarmUp, &[10; 1000]).unwrap();
        // An engine of 10,000 tokens a second that the queries keep busy.
        for _ in 0..1000 {
            let (lane, batch) = lengths(queue.take());
            let tokens: usize = batch.iter().sum();
            queue.observe_batch(lane, tokens, Duration::from_secs_f64(tokens as f64 / 10_000.0));
            let lane_texts = batch.len();
            push(&queue, lane, &vec![10; lane_texts]).unwrap();
        }
        let lanes = queue.state().lanes;
        let (query, warm_up) = (lanes[0].tokens_per_second, lanes[2].tokens_per_second);
        assert!((9000.0..=10_000.0).contains(&query) && (300.0..=800.0).contains(&warm_up), "{query} {warm_up}");
        assert_eq!(lanes[0].retry_after().as_secs(), 5);
        assert!((12..=34).contains(&lanes[2].retry_after().as_secs()), "{:?}", lanes[2].retry_after());
    }

    #[test]
    fn a_ticket_raised_before_or_after_its_job_is_queued_puts_it_into_the_lane_it_says() {
        let queue = Queue::new(Config { batch_tokens_max: 9, ..Config::default() });
        let early = job(Lane::WarmUp, 3);
        assert!(early.ticket.raise(Lane::Query) && !early.ticket.raise(Lane::Ingest));
        queue.promote(std::slice::from_ref(&early.ticket));
        let waiting = jobs(Lane::WarmUp, &[1, 2, 7, 8, 9, 100]);
        let tickets: Vec<Ticket> = waiting.iter().map(|job| job.ticket.clone()).collect();
        queue.push(waiting).map_err(|(refusal, _)| refusal).unwrap();
        // A window is made of the first ones; one of it and one behind it are raised.
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![9]));
        queue.push(vec![early]).map_err(|(refusal, _)| refusal).unwrap();
        for raised in [&tickets[2], &tickets[5], &tickets[4]] {
            raised.raise(Lane::Query);
            queue.promote(std::slice::from_ref(raised));
        }
        let state = queue.state();
        assert_eq!((state.lanes[0].texts, state.lanes[0].tokens, state.lanes[2].tokens), (3, 110, 11));
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![3]));
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![7]));
        assert_eq!(lengths(queue.take()), (Lane::Query, vec![100]));
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![8]));
        assert_eq!(lengths(queue.take()), (Lane::WarmUp, vec![2, 1]));
    }

    /// An engine of a known speed, on a simulated clock: all lanes but the first flood, and a query of 20 ms comes every
    /// 200 ms. What it waits is the rest of one batch.
    #[test]
    fn a_query_waits_for_no_more_than_one_batch_of_a_flood_and_the_flood_keeps_its_floor() {
        const TOKENS_PER_SECOND: f64 = 5000.0;
        let queue = Queue::new(Config::default());
        let (mut now, mut had) = (0.0, [0.0; LANES]);
        let mut waits: Vec<f64> = Vec::new();
        let mut came: Option<f64> = None;
        let mut next_query = 1.0;
        for at in 0..4000 {
            for lane in [Lane::Ingest, Lane::WarmUp] {
                if queue.state().lanes[lane as usize].texts < 1000 {
                    push(&queue, lane, &(0..500).map(|text| 10 + (at + text) * 37 % 110).collect::<Vec<_>>()).unwrap();
                }
            }
            if came.is_none() && now >= next_query {
                push(&queue, Lane::Query, &[100]).unwrap();
                came = Some(next_query);
                next_query += 0.2;
            }
            let (lane, batch) = lengths(queue.take());
            if lane == Lane::Query {
                waits.extend(came.take().map(|came| now - came));
            }
            let tokens: usize = batch.iter().sum();
            let took = tokens as f64 / TOKENS_PER_SECOND;
            now += took;
            had[lane as usize] += took;
            queue.observe_batch(lane, tokens, Duration::from_secs_f64(took));
        }
        waits.sort_by(f64::total_cmp);
        let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
        assert!(waits.len() > 200 && median < 0.03 && longest <= 0.1024 + 1e-9, "{median} {longest}");
        assert!(waits[waits.len() * 99 / 100] <= 0.032, "{:?}", &waits[waits.len() * 99 / 100..]);
        assert!(had[2] >= 0.045 * now && had[1] >= 0.75 * now, "{had:?} of {now}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Lane, Vec<usize>),
        /// Raises the ticket of the so-manieth job.
        Raise(usize, Lane),
        Take(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let lane = || prop::sample::select(Lane::ALL.to_vec());
        let step = prop_oneof![
            (lane(), prop::collection::vec(0usize..60, 1..12)).prop_map(|(lane, lengths)| Step::Push(lane, lengths)),
            (any::<usize>(), lane()).prop_map(|(at, lane)| Step::Raise(at, lane)),
            (0u64..40).prop_map(Step::Take),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn every_job_leaves_once_in_the_lane_of_its_ticket_and_counts_never_drift(steps in steps()) {
            const TOKENS_MAX: usize = 100;
            let config = Config { batch_tokens_max: TOKENS_MAX, batch_texts_max: 8, queue_texts_max: 64, ..Config::default() };
            let queue = Queue::new(config);
            let mut accepted: Vec<Ticket> = Vec::new();
            let mut left: Vec<u64> = Vec::new();
            let mut leave = |queue: &Queue, took_ms| -> Result<bool, TestCaseError> {
                let Some((lane, batch)) = queue.take() else { return Ok(false) };
                let tokens: usize = batch.iter().map(|(_, job)| job.tokens.ids.len()).sum();
                prop_assert!(!batch.is_empty() && batch.len() <= 8);
                prop_assert!(tokens <= TOKENS_MAX || batch.len() == 1);
                prop_assert!(batch.iter().all(|(_, job)| job.ticket.lane() == lane));
                left.extend(batch.iter().map(|(_, job)| job.ticket.number()));
                queue.observe_batch(lane, tokens, Duration::from_millis(took_ms));
                Ok(true)
            };
            for step in steps {
                match step {
                    Step::Push(lane, lengths) => {
                        let jobs = jobs(lane, &lengths);
                        let tickets: Vec<Ticket> = jobs.iter().map(|job| job.ticket.clone()).collect();
                        if queue.push(jobs).is_ok() {
                            accepted.extend(tickets);
                        }
                    }
                    Step::Raise(at, lane) if !accepted.is_empty() => {
                        let ticket = &accepted[at % accepted.len()];
                        if ticket.raise(lane) {
                            queue.promote(std::slice::from_ref(ticket));
                        }
                    }
                    Step::Take(took_ms) if queue.state().texts > 0 => {
                        leave(&queue, took_ms)?;
                    }
                    Step::Raise(..) | Step::Take(_) => {}
                }
                let state = queue.state();
                prop_assert!(state.texts <= state.texts_max);
                prop_assert_eq!(state.texts, state.lanes.iter().map(|lane| lane.texts).sum::<usize>());
            }
            queue.close();
            while leave(&queue, 1)? {}
            let state = queue.state();
            prop_assert_eq!((state.texts, state.tokens), (0, 0));
            let mut accepted: Vec<u64> = accepted.iter().map(Ticket::number).collect();
            accepted.sort_unstable();
            left.sort_unstable();
            prop_assert_eq!(accepted, left);
        }
    }
}
