//! The path of a miss: tokenise, look again by token ids, ask the shared tier, queue for the engine. Blocking; runs on a
//! blocking thread and goes on whoever leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::flight::{Attachment, Call, Failure, Landed, Spent, Waiter};
use super::remote::{self, Passage};
use super::writer::{Destination, Landing, Writer};
use super::{Inner, Shared};
use crate::batch::{Computed, Embedder, Job, JobError, Recipient, Ticket};
use crate::domain::{Embedding, Key, Scope, Status, TokenKey, Tokens, Truncation, TruncationDirection};
use crate::remote::Record;

/// A call to be answered, and what it asks about.
pub(super) struct Leader {
    pub(super) call: Arc<Call>,
    pub(super) input: Input,
}

/// One input, owned: the request it came with may be gone.
pub(super) enum Input {
    Text(String),
    /// Ids as a caller gave them.
    Tokens(Vec<u32>),
    /// A text that was tokenised already.
    Read(Tokens),
}

/// What all leaders of a request have in common.
#[derive(Clone)]
pub(super) struct Errand {
    pub(super) scope: Scope,
    pub(super) prompt: String,
    pub(super) truncation: Truncation,
    pub(super) sharing: Sharing,
}

/// Whether others may join.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// The calls stand in the maps.
    Shared,
    /// They do, and are computed whatever is stored.
    Refresh,
    /// They don't: everything is computed, and stored only as a replacement.
    Alone { replace: bool },
}

/// Ends calls that were not handed on, should anything between panic.
struct Unended {
    shared: Arc<Shared>,
    calls: Vec<Arc<Call>>,
}

impl Drop for Unended {
    fn drop(&mut self) {
        self.shared.flights.land(self.calls.iter().map(|call| (call, Err(Failure::Abandoned))));
    }
}

/// Sees to it that every leader's call ends.
pub(super) fn lead(inner: &Arc<Inner>, leaders: Vec<Leader>, errand: &Errand) {
    let (shared, embedder, writer) = (&inner.shared, &inner.embedder, inner.writer());
    let mut unended =
        Unended { shared: Arc::clone(shared), calls: leaders.iter().map(|leader| Arc::clone(&leader.call)).collect() };
    let leaders = if errand.sharing == Sharing::Shared {
        let leaders = land_already_stored(shared, leaders);
        shared.flights.keep_wanted(leaders, |leader| &leader.call)
    } else {
        leaders
    };
    let started = Instant::now();
    let inputs: Vec<&Input> = leaders.iter().map(|leader| &leader.input).collect();
    let tokens = match tokenize(embedder, &inputs, errand) {
        Ok(tokens) => tokens,
        Err(message) => {
            let failure = Failure::Tokenizer(message);
            shared.flights.land(leaders.iter().map(|leader| (&leader.call, Err(failure.clone()))));
            unended.calls.clear();
            return;
        }
    };
    let tokenize = started.elapsed();

    let (mut missed, mut kept_here) = (Vec::new(), Vec::new());
    let mut raised = Vec::new();
    let namespace = leaders.first().map(|leader| leader.call.particulars.namespace.clone()).unwrap_or_default();
    for (leader, tokens) in leaders.into_iter().zip(tokens) {
        let token_key = errand.scope.token_key(&tokens.ids);
        let truncated = tokens.truncated();
        let token_count = tokens.ids.len() as u32;
        let ticket = leader.call.ticket().clone();
        let (key, is_shared) = (leader.call.key, leader.call.particulars.is_shared);
        let target = match errand.sharing {
            Sharing::Alone { replace } => Target::Alone { call: leader.call, truncated, replace },
            Sharing::Shared | Sharing::Refresh => {
                if let Attachment::Rides(ticket) = shared.flights.attach(token_key, leader.call, truncated) {
                    raised.extend(ticket);
                    continue;
                }
                if errand.sharing == Sharing::Shared
                    && let Some((embedding, tokens)) = stored_under(shared, &token_key)
                {
                    let spent = Spent { tokenize, ..Spent::default() };
                    let to = Destination::Gathered(Status::TokenHit);
                    let passage = remote::passage(shared, is_shared);
                    writer.land(Landing { embedding, tokens, token_key, spent, to, passage });
                    continue;
                }
                Target::Gathered
            }
        };
        let passage = match &target {
            Target::Alone { replace: false, .. } => Passage::None,
            Target::Gathered | Target::Alone { .. } => remote::passage(shared, is_shared),
        };
        let waiting = Waiting {
            shared: Arc::clone(shared),
            writer: writer.clone(),
            token_key,
            token_count,
            tokenize,
            asked: Asked::default(),
            target,
            passage,
            ended: AtomicBool::new(false),
        };
        let to = if is_shared && errand.sharing == Sharing::Shared { &mut missed } else { &mut kept_here };
        to.push(Missed { key, tokens, ticket, waiting: Box::new(waiting) });
    }
    // From here on each call ends through its recipient or its landing.
    unended.calls.clear();
    embedder.promote(&raised);
    submit(embedder, kept_here);
    submit(embedder, remote::look(inner, &namespace, missed));
}

/// Has texts computed.
pub(super) fn submit(embedder: &Embedder, missed: Vec<Missed>) {
    let jobs: Vec<Job> = missed.into_iter().map(Missed::job).collect();
    if !jobs.is_empty()
        && let Err((refusal, jobs)) = embedder.submit(jobs)
    {
        for job in jobs {
            job.recipient.finish(Err(JobError::Refused(refusal.clone())));
        }
    }
}

/// A text that is neither stored here nor on its way, and those who wait for it.
pub(super) struct Missed {
    key: Key,
    tokens: Tokens,
    ticket: Ticket,
    waiting: Box<Waiting>,
}

impl Missed {
    /// What it is stored under.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// From now on it waits for the shared tier.
    pub(super) fn asks(mut self) -> Self {
        self.waiting.asked = Asked { since: Some(Instant::now()), took: Duration::ZERO };
        self
    }

    /// As it is, with this to be done with it in the shared tier once it is computed.
    pub(super) fn with(mut self, passage: Passage) -> Self {
        self.waiting.passage = passage;
        self
    }

    /// Lands what the shared tier has of it.
    pub(super) fn take(self, mut record: Record) {
        let Waiting { writer, token_key, tokenize, asked, ended, .. } = &*self.waiting;
        ended.store(true, Ordering::Relaxed);
        let embedding = Arc::new(Embedding { unit: std::mem::take(&mut record.unit), norm: record.norm });
        let spent = Spent { tokenize: *tokenize, remote: asked.elapsed(), ..Spent::default() };
        let to = Destination::Gathered(Status::Remote);
        let (tokens, passage) = (record.tokens, Passage::From(Box::new(record)));
        writer.land(Landing { embedding, tokens, token_key: *token_key, spent, to, passage });
    }

    fn job(mut self) -> Job {
        self.waiting.asked = Asked { since: None, took: self.waiting.asked.elapsed() };
        Job { tokens: self.tokens, ticket: self.ticket, recipient: self.waiting }
    }
}

/// Between a look into the store and joining, another call may have landed: those leaders are answered from the store.
fn land_already_stored(shared: &Shared, leaders: Vec<Leader>) -> Vec<Leader> {
    let keys: Vec<Key> = leaders.iter().map(|leader| leader.call.key).collect();
    let nothing = vec![None; keys.len()];
    let found = shared.read(
        &keys,
        shared.now(),
        nothing,
        |found| found.fill(None),
        |found, index, entry, row| {
            let embedding = Arc::new(Embedding { unit: row.into(), norm: entry.norm });
            let (tokens, truncated, spent) = (entry.tokens, entry.truncated, Spent::default());
            found[index] = Some(Arc::new(Landed { embedding, status: Status::Hit, tokens, truncated, spent }));
        },
    );
    let mut missing = Vec::with_capacity(leaders.len());
    let mut endings = Vec::new();
    for (leader, found) in leaders.into_iter().zip(found) {
        match found {
            Some(landed) => endings.push((leader.call, landed)),
            None => missing.push(leader),
        }
    }
    shared.flights.land(endings.iter().map(|(call, landed)| (call, Ok(Arc::clone(landed)))));
    missing
}

/// The inputs' token ids, in order.
pub(super) fn tokenize(embedder: &Embedder, inputs: &[&Input], errand: &Errand) -> Result<Vec<Tokens>, String> {
    let texts: Vec<&str> = inputs
        .iter()
        .filter_map(|input| match input {
            Input::Text(text) => Some(text.as_str()),
            Input::Tokens(_) | Input::Read(_) => None,
        })
        .collect();
    let tokenized = embedder.tokenize(&texts, &errand.prompt, errand.truncation).map_err(|error| error.to_string())?;
    let mut tokenized = tokenized.into_iter();
    let tokens = inputs.iter().map(|input| match input {
        Input::Text(_) => tokenized.next().ok_or("the tokenizer answered fewer texts than it was given".to_owned()),
        Input::Tokens(ids) => Ok(truncate(ids, errand.truncation)),
        Input::Read(tokens) => Ok(tokens.clone()),
    });
    tokens.collect()
}

/// Cuts token ids that came as such.
fn truncate(ids: &[u32], truncation: Truncation) -> Tokens {
    let kept = ids.len().min(truncation.max_tokens);
    let ids_kept = match truncation.direction {
        TruncationDirection::Right => &ids[..kept],
        TruncationDirection::Left => &ids[ids.len() - kept..],
    };
    Tokens { ids: ids_kept.into(), count_before_truncation: ids.len() }
}

/// The vector of another text with the same token ids, unless it is to be computed anew itself.
fn stored_under(shared: &Shared, token_key: &TokenKey) -> Option<(Arc<Embedding>, u32)> {
    let key = shared.store.find_by_tokens(token_key)?;
    shared.read(
        &[key],
        shared.now(),
        None,
        |found| *found = None,
        |found, _, entry, row| {
            if !entry.stale {
                *found = Some((Arc::new(Embedding { unit: row.into(), norm: entry.norm }), entry.tokens));
            }
        },
    )
}

/// Those who wait for a job.
struct Waiting {
    shared: Arc<Shared>,
    writer: Writer,
    token_key: TokenKey,
    token_count: u32,
    tokenize: Duration,
    asked: Asked,
    target: Target,
    passage: Passage,
    ended: AtomicBool,
}

/// How long the shared tier was asked, or is being asked.
#[derive(Clone, Copy, Default)]
struct Asked {
    since: Option<Instant>,
    took: Duration,
}

impl Asked {
    fn elapsed(&self) -> Duration {
        self.since.map_or(self.took, |since| since.elapsed())
    }
}

enum Target {
    /// Everyone gathered under the token key.
    Gathered,
    /// One call.
    Alone { call: Arc<Call>, truncated: bool, replace: bool },
}

impl Waiting {
    fn fail(&self, failure: &Failure) {
        self.ended.store(true, Ordering::Relaxed);
        match &self.target {
            Target::Gathered => self.shared.flights.fail(&self.token_key, failure),
            Target::Alone { call, .. } => call.resolve(Err(failure.clone())),
        }
    }
}

impl Recipient for Waiting {
    fn wanted(&self) -> bool {
        let wanted = match &self.target {
            Target::Gathered => self.shared.flights.wanted(&self.token_key),
            Target::Alone { call, .. } => call.is_wanted(),
        };
        if !wanted {
            self.ended.store(true, Ordering::Relaxed);
        }
        wanted
    }

    fn finish(mut self: Box<Self>, outcome: Result<Computed, JobError>) {
        let computed = match outcome {
            Ok(computed) => computed,
            Err(error) => return self.fail(&Failure::Job(error)),
        };
        let embedding = match Embedding::from_raw(&computed.vector) {
            Ok(embedding) => Arc::new(embedding),
            Err(unusable) => {
                tracing::error!(tokens = self.token_count, %unusable, "a vector was refused");
                return self.fail(&Failure::Unusable(unusable));
            }
        };
        self.ended.store(true, Ordering::Relaxed);
        let to = match &self.target {
            Target::Gathered => Destination::Gathered(Status::Computed),
            Target::Alone { call, truncated, replace } => {
                Destination::Alone { call: Arc::clone(call), truncated: *truncated, replace: *replace }
            }
        };
        let spent = Spent {
            tokenize: self.tokenize,
            remote: self.asked.elapsed(),
            queue: computed.queued_for,
            inference: computed.inference,
            write: Duration::ZERO,
        };
        let passage = std::mem::take(&mut self.passage);
        let (tokens, token_key) = (self.token_count, self.token_key);
        self.writer.land(Landing { embedding, tokens, token_key, spent, to, passage });
    }
}

impl Drop for Waiting {
    /// A job that was dropped without an ending (its thread died) fails those who wait, rather than leave them waiting.
    fn drop(&mut self) {
        if !self.ended.load(Ordering::Relaxed) {
            self.fail(&Failure::Abandoned);
        }
    }
}

/// A leader for each waiter that leads.
pub(super) fn leader(waiter: &Waiter, input: Input) -> Leader {
    Leader { call: Arc::clone(waiter.call()), input }
}
